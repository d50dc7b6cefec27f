
BscoresJ(j°y=Ù˘Z=:VX=Ú3D=^@=nV?=≤75=>ã2=Oè.=\ç.=