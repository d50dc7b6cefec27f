
BscoresJ(+Їv>киd>rЭU>▐ЎR>~.N>БG>Т C>╛O7>*N/>Ф@.>