
BscoresJ(Ni,=b‚'=¼ì%=µs%=RF=™¨=že=ÚS= ·	=Ú”	=