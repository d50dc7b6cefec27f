
BscoresJ(tыҐ=”аќ=квЏ=ґЇ†=v0Ѓ=г;h=DNf=ШљY=€МX=<чW=