
BprobabilitiesJ(¦>ËVÅ;›ž<Óô<5f?B~=Ô(©=¬l> )3=ÌÊŽ;