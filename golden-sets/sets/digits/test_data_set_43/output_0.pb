
BprobabilitiesJ(.γ<Ιd=έπ=ΉΩ;υα=“&³>b;ζ’=mF
>¶>