
BscoresJ(BVŠ>f5…>ÄWx>$U^>ÊbI>TG>ÿD>(JB>>®=>m>=>