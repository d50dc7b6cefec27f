
BprobabilitiesJ(Θ?	87L[?9¶*
8γχh:_K#:¥ς':¬S9ª–9U9-: