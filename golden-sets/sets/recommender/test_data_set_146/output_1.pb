
BscoresJ(ถซi>*ส`>$jY>1rO>คลI>>I>.XD>๘9>h2>จุ0>