
BscoresJ(J–>œ‡>‰d„>Âß>
.b>‡+a>pÁW>¨ÁN>®H>vG>