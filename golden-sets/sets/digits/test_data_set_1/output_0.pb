
BprobabilitiesJ(°L€8@1b8éÁ~?õ:l;;±x6çÖ 9í8RAÿ7»x4:t}õ7