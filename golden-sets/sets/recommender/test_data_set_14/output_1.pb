
BscoresJ(╓Ё >й┴>NI┤>╖▄j>bnS>AS>`щR>XP>пON>ялH>