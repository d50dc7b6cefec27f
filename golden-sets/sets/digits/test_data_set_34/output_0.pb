
BprobabilitiesJ(Bg6-%9$c§9Ö÷~?"ë5§g¸8â¬
78Â·8‡{=;¸ù9