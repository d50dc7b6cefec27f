
BprobabilitiesJ(×¹¯<ÚÛw:õdµ:êçb<êY÷:êÃ?o9Ö;"¢c:æç;d»>