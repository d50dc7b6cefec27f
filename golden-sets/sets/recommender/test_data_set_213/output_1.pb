
BscoresJ(¶·=*ER=ÔDR=QE=ş©D=÷¢?=Cl==Nõ9=0A9=&.=