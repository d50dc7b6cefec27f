
BprobabilitiesJ(U÷48"”Ä8¦¨¦<Ó†z?x7ó9pÖ×8/ºÕ8raâ8ˆ­9