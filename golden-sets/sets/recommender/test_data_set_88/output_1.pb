
BscoresJ(åð‰=˜-ˆ=	hƒ=`…o=Þhf=–Sf=à{\=V%\=÷pF=~.F=