
BprobabilitiesJ(^BP:ªí9\Ï®9ãSX:ú0R;q‚:—úƒ8¬Ø|?q+—9Š‘¯;