
BscoresJ(nû}>„or>|ˆN>HK>hmH>kRF>ÄŒ?>H‚<>¾w<>Õ7>