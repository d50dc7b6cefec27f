
BscoresJ(‚7g=°V=©uP=5>N=>ÄK=6åH=cÊH=dGF=ë(@=ÿ]5=