
BscoresJ(‡o>lá†>Ü¼|>Ê{>qªv>dîl>ù"_>îÜN>’WG>èd?>