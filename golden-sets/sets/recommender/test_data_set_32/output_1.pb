
BscoresJ(-˜Ž>ÐÒv>´q>éÒl>è™e>BsZ>GX>ÈÊS>ã <>²6>