
BscoresJ(¦×=~ z=d³m=\xl=Žùk=ök=?L`={åL=3œH=€‹H=