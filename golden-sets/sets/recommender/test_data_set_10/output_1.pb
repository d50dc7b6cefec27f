
BscoresJ(х╗>6⌠>RY▐>М√┘>]hw>[ud>/W>двP>e7P>[%K>