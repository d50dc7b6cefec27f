
BscoresJ('•§>FrŒ>;‹‡>&i>
¯X>baX>|˜W>1zR>C I>NMH>