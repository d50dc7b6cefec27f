
BscoresJ(úü¡>ºk>Néz>4z>°Æx>x¾n>}Li>ðúR>íšQ>¸ÌF>