
BscoresJ()‘‰=€^x=v>o=A£n=‰ßj=øj=ê×g=úxZ=#X=L=