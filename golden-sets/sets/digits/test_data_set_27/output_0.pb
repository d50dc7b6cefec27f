
BprobabilitiesJ(dI¤:χFƒ;\`β8B†r9έ¬—;δz?:!3;G*©;'Ο:dξω: