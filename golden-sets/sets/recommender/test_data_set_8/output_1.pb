
BscoresJ(ZyT>JöN>3±L>¾bE>%ÃA>®@>Œ1?>Š6>ä*>e*>