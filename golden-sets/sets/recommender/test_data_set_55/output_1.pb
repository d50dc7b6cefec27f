
BscoresJ(n‹>gÇˆ>oJ†>b…>b>¾k>ƒã_>gã_>’V\>.V>