
BscoresJ(╬∙Я=aФФ=Г=В!v=Ё╟p=З║_=DЙU=ньL=yhG=┼╥C=