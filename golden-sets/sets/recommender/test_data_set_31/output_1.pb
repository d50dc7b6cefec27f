
BscoresJ(!fЩ>“wС>ямn>Eѕe>»e>Нe>†щ\>ОcN>(eG>ЦґF>