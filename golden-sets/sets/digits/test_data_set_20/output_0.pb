
BprobabilitiesJ(<›k7úfÍ7ÔÊ*5'•?5\Ù?tÖ7ÿ“9*§‡9m“×55%®4