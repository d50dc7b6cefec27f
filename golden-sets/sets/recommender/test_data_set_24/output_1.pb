
BscoresJ(/Zš>vf˜>lƒ>ÀNt>KOs>¿¯e>Že[>'Y>®1O>wšB>