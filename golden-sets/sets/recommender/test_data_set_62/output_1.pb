
BscoresJ(¸À²=È²®=J=ž=!‰=t™z=&"y=‡x=¤Cp=.]=j‡Q=