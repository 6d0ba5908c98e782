"""E3SAM2: SAM2 adapted to echocardiography, guided by attention entropy and edges."""

from echoplan.networks.e3sam2.network import E3SAM2, plain_sam2
from echoplan.networks.e3sam2.prompts import Prompts

__all__ = ["E3SAM2", "Prompts", "plain_sam2"]
