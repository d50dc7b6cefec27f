
BscoresJ(๐Hะ=ส=.บ=”==xz=F๔m=ช้i=jÞi=Zi\=