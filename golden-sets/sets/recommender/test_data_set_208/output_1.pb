
BscoresJ(rf="àT=nÎ(=&Ÿ=FS=Ç=³=ìs=öf=´Pú<