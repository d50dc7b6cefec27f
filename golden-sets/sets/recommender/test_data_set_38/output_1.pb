
BscoresJ(zˆ~>ªIf>*e>æTc>ûÉb>søY>§UU>œ‹R>ŸJ>Ó@G>