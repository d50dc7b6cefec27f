
BscoresJ(Œ^}>B‹b>Xb>Z>P»X>F€H>úé=>4Ó2>»->âú+>