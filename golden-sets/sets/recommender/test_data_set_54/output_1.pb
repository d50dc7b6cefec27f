
BscoresJ(ª#^>CAT>îPI>¾ºC>’“C>¶wA>"Æ7>Ó$*>~à#>Ï2#>