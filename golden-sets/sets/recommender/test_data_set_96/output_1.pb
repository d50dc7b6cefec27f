
BscoresJ(÷f=/yQ=óP=ÄN=\N=<]K=àÏI=Š‚H=²z<=ò&4=