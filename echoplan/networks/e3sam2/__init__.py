"""E3SAM2 (Zheng et al.): SAM2 adapted to echocardiography, guided by attention entropy and edges."""
