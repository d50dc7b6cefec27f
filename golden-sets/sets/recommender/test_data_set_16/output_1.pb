
BscoresJ(I>þ f>อยS>s้E>[=>Mq(>S'>aü&>๖>+ฅ>