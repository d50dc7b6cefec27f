
BscoresJ(¸¥}>,4l>t¥_>dÞ\>dmS>=ÃE>ü8E>9>+8>uK.>