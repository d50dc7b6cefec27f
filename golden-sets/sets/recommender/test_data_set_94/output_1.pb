
BscoresJ(¡N´=PI«=ü%‡=¼¡l=¤;h=º|_=½áW=jG==ï“8=uª3=