
BscoresJ(ВxЌ>№Ѓ|>kdm>нцT>nD>X=>нЁ6>­Z#>ЅL">0Ь!>