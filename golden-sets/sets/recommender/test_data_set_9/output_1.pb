
BscoresJ(wU>ýM>ü4E>ÖA>×9>>
8>?>Íg>rm>TÛ>