
BscoresJ(bÞ„>Xä\>–AC>»ÇA>8)A>Q·=>wd=>ÖO0>?¦(>=Œ$>