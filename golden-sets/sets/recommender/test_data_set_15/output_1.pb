
BscoresJ(ô@Ÿ>Õ²‚>ÿ“x>3#g>{YT>€åP>h•E>®ËA>­EA>d4?>