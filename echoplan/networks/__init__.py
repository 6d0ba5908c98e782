"""The networks: one file or folder a method, all built by name."""

from echoplan.networks.interface import ClipOutput
from echoplan.networks.registry import build_network, network_names

__all__ = ["ClipOutput", "build_network", "network_names"]
