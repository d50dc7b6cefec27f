
BprobabilitiesJ(ÎÌ|;§şI<	åÖ<ıÏ>÷A{;-À;fŠ|;ìi<8ã;Ou?