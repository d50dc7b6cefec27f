
BscoresJ(K Ÿ>Y¸>öD\>ÁžU>™žR>šmQ>ŽN>I–J>·hI>Î<>