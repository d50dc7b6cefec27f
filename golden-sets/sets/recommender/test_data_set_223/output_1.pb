
BscoresJ(>ƒw=x¡[=N
[=°—W=Ø†G=§ŽC=•==#g/=f/=Oõ,=