
BprobabilitiesJ(APP9MiÜ8wÃ9>:»;9ê9ðì:u9\Œ|?À5<