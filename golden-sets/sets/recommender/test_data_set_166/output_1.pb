
BscoresJ(-ž~=O+q=$Ej=Õc=^£[=T¼Q=x±M=Èw6=>5=}í)=