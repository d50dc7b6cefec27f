
BscoresJ(ò =Ün‹=8ò†=èy=Ilp=ÑÂi=ˆ»e=kÔ^=n[=¹qP=