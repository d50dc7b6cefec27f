
BprobabilitiesJ(L7é9Ô[ë87P
;vÅQ9¼÷W:0¢9xi~?S»\8äÕ;®îÒ6