
BscoresJ(<O=v6=ˆ¨-=u-= C)=‚z=R=t=îw=B		=