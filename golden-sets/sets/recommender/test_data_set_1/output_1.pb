
BscoresJ(Ïk>ì¨h>»HL>sâC>ûÞ:>ÉV8>[í5>˜Â5>ad4>ë–>