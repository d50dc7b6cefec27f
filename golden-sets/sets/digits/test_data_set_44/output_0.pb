
BprobabilitiesJ(й€¶:јbы:щK;п	?KТ:кг><	6;чњП;‘?c;°лЪ: