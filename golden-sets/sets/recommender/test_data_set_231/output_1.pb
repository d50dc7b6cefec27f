
BscoresJ(dœf=ñØ[=ĞZ=›°Q=&I=$I=DıB=dŒ:=®ö2=as.=