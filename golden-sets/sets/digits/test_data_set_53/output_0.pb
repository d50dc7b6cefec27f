
BprobabilitiesJ(‚yJ;eøá:¡?=2‡2>³ÖJ;øö>çpò:rç#=¸ò>%¥Ü=