
BscoresJ($™†=Bh=¶ëg=²¡f=F;d=†0c=::S=ºúR=øR="&N=