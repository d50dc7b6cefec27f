
BscoresJ(>ÐŸ‡>/]~>Þ]y>ñt>\]n>Úh>¸JW>>cN>¬›D>