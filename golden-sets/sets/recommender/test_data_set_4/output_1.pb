
BscoresJ(êð´>C >Œz>nWW>/×Q>5J>´…G>w7C>YÊ<>œÁ0>