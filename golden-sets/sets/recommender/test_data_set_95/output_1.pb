
BscoresJ(z•º=åÓš=Ržƒ=Ž`€=Dš[=vZ=8ÏT==EL=:V>=Ì;=