
BscoresJ(}s»=ù‡ =Pm=ýa=±"S==S=²·K=2ëJ=¼ËI=Öf7=