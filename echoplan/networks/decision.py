"""From probabilities to labels."""

from __future__ import annotations

import numpy as np


def labels_from_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """The most probable label of every pixel.

    Args:
        probabilities: (K, ...) in [0, 1]. K = 1: one structure, taken where it reaches 0.5; else one map a label, the
            background first. Pixels where all maps are zero (outside a crop) are background.

    Returns:
        (...) uint8 labels.
    """
    if len(probabilities) == 1:
        return (probabilities[0] >= 0.5).astype(np.uint8)
    return probabilities.argmax(axis=0).astype(np.uint8)
