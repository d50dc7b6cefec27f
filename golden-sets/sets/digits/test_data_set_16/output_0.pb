
BprobabilitiesJ(n„y;Й[8Цх9>Ањ8JУ:qеH:О‘|?…€7RСъ;–Ф<7