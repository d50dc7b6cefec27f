
BscoresJ("äŠ>Jjz>ÀSu>ì;h>°W>e¯J>6qJ>ÁJ>¨ H>óaG>