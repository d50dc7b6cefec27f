
BscoresJ(\gฆ>ฑqค>Va>ยก_>Ý^>แX>ฃV>büP>คP>CC>