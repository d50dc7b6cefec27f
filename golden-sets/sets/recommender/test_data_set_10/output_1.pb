
BscoresJ(•)±>fEš>5Ì‘>C¬‘>I¶t>M,h>`e>6(e>dìP>ÄÆL>