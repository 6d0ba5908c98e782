"""EchoForge: semi-supervised echocardiography video segmentation by anchors, a memory and reforged pseudo-labels."""
