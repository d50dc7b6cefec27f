
BprobabilitiesJ(0AÊ78Ö~?yQo:“Oè8}õZ:“]u9?OX:Ñi°9–¢:`’Í7