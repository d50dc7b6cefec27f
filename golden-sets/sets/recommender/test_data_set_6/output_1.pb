
BscoresJ(ïÌ‚>ú¾€>s{>,<v>S°r>^,i>B:[>±G>¡ÌD>™ÀC>