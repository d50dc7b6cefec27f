
BprobabilitiesJ(¿É-9mtš=F-ù7˜²Ø9c?â³L:³=ËÜ:œÂ:ÀcE7