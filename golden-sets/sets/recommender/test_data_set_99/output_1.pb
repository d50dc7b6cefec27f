
BscoresJ(|Ìu='Ot=FÍe=^J=s•G=Æ:=#™*=î&=ÍX%=¼‹=