
BscoresJ(?GK=‚zC=ˆ	A=)6=Ôj4=tÑ3=˜ÿ2=6q+=åk'=™ð=