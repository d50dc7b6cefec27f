
BprobabilitiesJ(jã~?Ôtñ7î¼…9ä8çC:Û9ÿä:^oÇ9ıJE9÷ìö9