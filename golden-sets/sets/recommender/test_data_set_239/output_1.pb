
BscoresJ(x•=ˆl=ï`=bòS=„R=T:M=!ÑB=9=JÃ4=ZÁ4=