
BscoresJ(ˆ®†>‰æ‚>î‘>Òæq>VqY>1šL>ËGJ>P«E>o™C>Ç@A>