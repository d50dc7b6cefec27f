
BscoresJ(OzŠ>ämz>¶yo>¢j>*e>'ˆ]>è\>xQ[>)™S>…úL>