"""PKEcho-Net: echocardiography video segmentation with region proxies and learnable kernels (Wu et al., AAAI 2023)."""
