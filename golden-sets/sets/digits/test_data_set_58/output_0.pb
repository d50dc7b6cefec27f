
BprobabilitiesJ(-Ç§:š;R¢ª=ë–?:„’:ƒ';C‘;Qˆ:Ýt>7C#=