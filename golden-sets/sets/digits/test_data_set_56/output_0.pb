
BprobabilitiesJ(F–ö9|qE:%š(?NtŸ>îf*8ý`Ò:ÅoÎ:«™N9-àÉ<¯"2: