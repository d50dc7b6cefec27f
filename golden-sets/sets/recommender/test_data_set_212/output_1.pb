
BscoresJ(ƒí“=Xmt=p-c=„wE= ’C=,»B=B=aA=¸`A=;==