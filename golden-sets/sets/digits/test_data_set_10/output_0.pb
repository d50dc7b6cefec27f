
BprobabilitiesJ(”´S;[9¼t³8«;Ü½:Ãy?\g;Å–š9Þ4:›”^<