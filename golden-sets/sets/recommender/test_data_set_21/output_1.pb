
BscoresJ(Ÿ¦>ž€>õp>¶Âf>Zòe>]We>zÉU>r¼I>ÚŠA>÷NA>