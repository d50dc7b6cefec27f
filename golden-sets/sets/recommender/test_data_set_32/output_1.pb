
BscoresJ(»ÐŒ>¨Ht>•9h>\b>’)`>ÿY>tóU>KnB>²‚.>˜Ø&>