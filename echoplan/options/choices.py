"""The words that options take. What they mean lies where PyTorch is imported, and a test compares the two."""

from __future__ import annotations

# Trainer -> method, and what it sees.
TRAINERS = {
    "UNetTrainer": "nnU-Net's 2D recipe, a frame",
    "UNet2DtTrainer": "the same in space-time, a clip",
    "PKEchoNetTrainer": "PKEcho-Net on ResNet-50, a clip",
    "PKEchoNetR34Trainer": "PKEcho-Net on ResNet-34, a clip",
    "PKEchoNetR18Trainer": "PKEcho-Net on ResNet-18, a clip",
    "E3SAM2Trainer": "E3SAM2 on SAM2 tiny, a clip",
    "E3SAM2SmallTrainer": "E3SAM2 on SAM2 small, a clip",
    "SAM2Trainer": "SAM 2.1 fine-tuned, a clip",
    "EchoForgeTrainer": "EchoForge, a clip, also of unlabelled frames",
    "EchoNetTrainer": "EchoNet-Dynamic's DeepLabV3, a frame",
    "ResUNetTrainer": "a U-Net with ResNet-18, a frame",
    "SAMTrainer": "SAM ViT-B fine-tuned, a frame",
    "MedSAMTrainer": "SAM from MedSAM's weights, a frame",
    "SAM1024Trainer": "SAM at 1024 x 1024, MedSAM's recipe",
    "MedSAM1024Trainer": "MedSAM at 1024 x 1024, its own recipe",
    "LiteMedSAMTrainer": "LiteMedSAM (TinyViT), a frame",
}
VOLUME_RULES = ("area_length", "camus", "folland", "simpson")
BACKENDS = ("torch", "onnx", "openvino")
FOUNDATION_MODELS = ("sam", "medsam", "lite_medsam", "sam2")
BOXES = ("centres", "bounding_rect")
PROMPTS = ("point", "jittered", "pixel", "box", "jittered_box", "mask")
PAPERS = ("e3sam2", "echoforge", "pkechonet", "sam_echo", "sam2_ultrasound")
CHANGES = ("gain", "haze", "attenuation", "depth", "rotation", "mirrored", "resolution", "frame_rate")
CONVERTERS = ("camus", "echonet_dynamic", "folder")
STRUCTURES = ("lv", "all")
PHANTOM_LAYOUTS = ("raw", "camus", "echonet_dynamic")
LABELLED_FRAMES = ("dense", "ed_es")
COVERAGE = 0.9
