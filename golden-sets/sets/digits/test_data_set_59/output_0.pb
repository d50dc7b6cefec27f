
BprobabilitiesJ(maƒ>Y=9¨Í™9´V9´æ$?ËÜ9[ƒÆ=•Y:øÛ9šê8