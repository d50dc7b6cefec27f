
BscoresJ(Æ¾=uÕ«=ú‰=BÚ„=Xm=a`k=Ê¦a=&øZ=»=V=¶‹J=