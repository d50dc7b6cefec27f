
BscoresJ(TXˆ>”ÿm>zm>W`>ÕÏ^>sgJ>1 H>loG>HƒA>5/>