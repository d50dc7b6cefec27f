
BscoresJ(0s>«g…>$·v>/	p> Q;>Pm4>yø+>”%>wþ$>½¯#>