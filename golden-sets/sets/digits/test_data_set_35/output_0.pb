
BprobabilitiesJ(Ž+<;8ÉÎ;k(w?O”÷9öùo:¯k¸7ºH©:a;Ó˜”<aé8