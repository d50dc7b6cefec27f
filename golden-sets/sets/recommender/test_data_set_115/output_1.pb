
BscoresJ(êÀ†=í›í=≈í=k–å=Wﬁã=,rz=»Ïw=Ÿ6k=IÓj=¢ÜK=