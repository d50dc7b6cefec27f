
BprobabilitiesJ(ëeó8Œ’9Ï:ó;üë`9—ıÔ8Ò‡78X~?…­9
³n9