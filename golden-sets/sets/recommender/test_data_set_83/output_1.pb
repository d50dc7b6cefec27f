
BscoresJ(c“=Œ=np=Åg=løc=b³M=‚J=f8=²-=;B*=