
BscoresJ(j¦„>ÈH>NüD>RG>>¹3>á1>B@1>R0>€õ,>åH,>