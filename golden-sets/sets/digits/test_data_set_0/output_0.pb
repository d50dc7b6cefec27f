
BprobabilitiesJ(YÚ:jy–8_c‹775B7K~?¢”¥8±ä†:è›;|EÊ8t„§7