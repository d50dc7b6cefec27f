
BscoresJ($Wœ=Ìô=¦y=m¬x=MÐw=@ r=„r=îŽh=gGd=Úü[=