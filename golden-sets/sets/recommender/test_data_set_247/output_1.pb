
BscoresJ(JBƒ=$Kz=Lgi=ÜF='¸>=b´1=Ö¶*=Ä<'={´"=Lü!=