"""EchoForge: semi-supervised echocardiography video segmentation by anchors, a memory and reforged pseudo-labels."""

from echoplan.networks.echoforge.network import EchoForge

__all__ = ["EchoForge"]
