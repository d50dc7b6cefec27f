
BscoresJ(Joƒ>\n€>Å=€>}p>×÷X>2IX>v™Q>$8>ýš4>—Ä2>