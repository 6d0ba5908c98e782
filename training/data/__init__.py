"""Data loading: which frames make a sample, how it is augmented, how batches come."""

from ..augmentation import Augmentation, build_augmentation
from .loader import Batch, BatchLoader, SampleReader, split_batch, to_device
from .sampling import Sample, clip_samples, frame_samples, planned_samples, visible_frames, window_samples

__all__ = [
    "Augmentation",
    "Batch",
    "BatchLoader",
    "Sample",
    "SampleReader",
    "build_augmentation",
    "clip_samples",
    "frame_samples",
    "planned_samples",
    "split_batch",
    "to_device",
    "visible_frames",
    "window_samples",
]
