
BscoresJ("Wl>ºeh>„}[>vÿT>ÿ»T>õA=>)\7>Øø->Ñ%>Þ >