
BscoresJ(TIZ=cÁ@=A¤4=Â$'=&=Jú=”á=o{=en=šÁ=