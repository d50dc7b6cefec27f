
BscoresJ(ö^k>ÜH>t'H>OyB>–ü?>s÷>>´¬1>8à->cW->>w+>