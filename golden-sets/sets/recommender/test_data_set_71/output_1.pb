
BscoresJ(LØv=2\l=#Hc=+Ib=º
Q=@‹H=ôs8=µù6=Œ.=8=