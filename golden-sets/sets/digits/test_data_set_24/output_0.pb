
BprobabilitiesJ(éé8P|?/ïÇ:Oë8“¿Æ:ÿé9²DK;¬/}:-ì;»J9