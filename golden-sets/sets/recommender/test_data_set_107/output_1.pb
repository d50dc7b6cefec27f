
BscoresJ(˜i=ÈžX=LTX=”MS=B>P=V}B=ì8=žÅ4=Ú3=Mó =