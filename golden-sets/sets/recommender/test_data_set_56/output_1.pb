
BscoresJ(]O>zCM>R	;>¸ø1>¿O>$Þ>T€>
¾>&‡>£Q	>