
BscoresJ(­û’>Ã>ù*w>6Al>ð_>v¦U>ÑcL>]ªK>ž‘G>å,8>