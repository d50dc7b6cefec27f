
BscoresJ(šÉž>ÔÀ>†*Ž>Õßn>©àm>ogj>X|Z>x¶X>¥·T>¨sS>