
BscoresJ(ֶ,u>>א_>'זV>XƒJ>M>>דפ:>ײG4>Yb2>]d1>@,>