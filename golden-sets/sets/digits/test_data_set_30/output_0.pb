
BprobabilitiesJ(;Ã8S?Ñá9ˆ¥•7°Ð8cê*9Cã:=£E7‚Ï¡8À—“8