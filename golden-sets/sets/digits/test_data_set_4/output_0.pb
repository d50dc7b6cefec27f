
BprobabilitiesJ(Õ3:˜Ùu7AL;8Êÿo9Ö·8xî±9uR.7\8š‹;×?