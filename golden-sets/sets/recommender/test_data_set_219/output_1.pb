
BscoresJ(8!w=Œm=zW=4ÉT==hK=∆÷*=2H%=© =m® =‘π=