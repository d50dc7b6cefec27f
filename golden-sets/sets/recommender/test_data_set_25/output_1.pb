
BscoresJ(žG>Ù„>w›ƒ>[Î‚>è>¼Ci>_fV>±ÛU>×N>žgH>