
BscoresJ( `É=’^É=á|=ËZ|=Qt=ái=n2W=IAF=X†E=≈@=