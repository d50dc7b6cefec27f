
BscoresJ(HÐu=:®n=$&d=çôb=ì¬Q=ÿTI=¬8=G°5=íž/=à=