
BscoresJ(=Áß{=Pz=–0w=×±r=2Ùe=X=L=ñA=5A=