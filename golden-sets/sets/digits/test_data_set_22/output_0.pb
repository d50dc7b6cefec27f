
BprobabilitiesJ(@c8´-|6@÷4E‡I5õä?,å7ú*H8ú€9ñÑ’6H­[8