
BscoresJ(>‘°=DÛ“=ý=DK|=
A|=+v=Ú¦f=îW=~œJ=ÐUI=