
BprobabilitiesJ(¨¦<"ˆ­;„?š9Í_;6Œ”>RkÜ>¾Q+=­T>^2»9Ln9