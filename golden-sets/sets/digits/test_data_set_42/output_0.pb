
BprobabilitiesJ(Œ»;.¤<0¶y;Äñ<ç|^;
ÂÞ>CYÅ:¿R¾;æKø>Ùþ±<