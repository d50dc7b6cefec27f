
BscoresJ(льT=bM=;J=~кA=А)3=Q1=yь=L·=BD=B=