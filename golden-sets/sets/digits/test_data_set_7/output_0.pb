
BprobabilitiesJ(ÍÖT:1!Z?(½~8pÉ:I×l:’èˆ9^0K8¨¦91/T:²õ>