
BscoresJ("âe>xW>ÅÙE>îCB>¼4>{>MN>Ð‡>›¢>Déþ=