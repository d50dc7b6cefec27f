
BprobabilitiesJ(öéä;L‘:øÃ˜;¥³â<½<¿§¡:ô7²:Dùh?ôo¼<î©[: