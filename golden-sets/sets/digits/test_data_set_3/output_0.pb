
BprobabilitiesJ(¨<zqC;®\I;ér=îj;|€º;õ¾;Ðº;M‚=:<_?