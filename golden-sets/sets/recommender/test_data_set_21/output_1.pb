
BscoresJ(Öäu>¡lj>;+f>„fX>ƒX>.V>ÛòT>É?>¾ <>98>