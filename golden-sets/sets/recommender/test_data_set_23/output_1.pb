
BscoresJ(ข้x>ฮs>จg>;N>๎A>P,>T“(>a > >A >