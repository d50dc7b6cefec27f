
BprobabilitiesJ(žÈ3:z;ä;mÄ:hv?îK9ÀfÄ>^;sô:q¹—=—"ÿ;