
BscoresJ(ÒÜZ=~UR=’íN=ðvH=ƒD=øï/=8=§º=òj=jº=