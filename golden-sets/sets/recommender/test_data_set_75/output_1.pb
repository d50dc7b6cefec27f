
BscoresJ(lkÄ=Ú§=´aˆ='’x=ìX=JW=|
V=v•S=ô÷P=°öN=