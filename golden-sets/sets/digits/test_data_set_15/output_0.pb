
BprobabilitiesJ(®<9]¨À8%69s#=o•@8aw?Ñ5:X´Ó8Pë°:tÞ×9