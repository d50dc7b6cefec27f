
BscoresJ(0žc>VV>bòP>tg<><ð/>f­*>[&>Óß >Ez> b>