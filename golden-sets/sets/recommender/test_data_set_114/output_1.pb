
BscoresJ(0ˆ>םכ€>aßj>ˆ%f>פ;T>(ּH> ™C>ֽA>_8>T0>