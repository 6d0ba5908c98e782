"""PKEcho-Net: echocardiography video segmentation with region proxies and learnable kernels (Wu et al., AAAI 2023)."""

from echoplan.networks.pkechonet.network import PKEchoNet

__all__ = ["PKEchoNet"]
