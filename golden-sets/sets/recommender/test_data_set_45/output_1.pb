
BscoresJ(é‹Y>ºBK>°?>>g>.>db+>áB)>K>´<>ö8>ôæ>