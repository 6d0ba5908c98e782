"""Trained models for other runtimes than PyTorch: ONNX files, who runs them, and the card that goes along."""
