
BprobabilitiesJ(Û¤w:Iî¤:rî':n<¹Ö:ÌVq?ïØy;`%A:»®=ÒÙ;