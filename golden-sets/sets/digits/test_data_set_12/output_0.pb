
BprobabilitiesJ(Å	†7Móf7ÿßj7óí÷:4¦7ís?Íì¡7·\İ7–“T8Í8