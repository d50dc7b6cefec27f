
BscoresJ(Jeª>Ú•>8Üh>¦CS>ÔWI>ÒƒA>¶HA>™	@>	'2>™Ó+>