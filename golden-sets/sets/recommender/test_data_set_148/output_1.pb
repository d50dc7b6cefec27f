
BscoresJ(HÚè=WSÄ=£Â=SÌ½=pú¹=²s­=  =,yž=µH=æx›=