"""What the frozen encoder of a network makes of frames: computed once, kept on disk, and read in every later epoch."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from echoplan import __version__, layout
from echoplan.files import atomic_path
from echoplan.networks.weights import weights_digest

if TYPE_CHECKING:
    from .data import Batch
    from .methods.method import Method
    from .step import TrainStep

_SHARE = 0.5  # of the disk's free space


@dataclass(frozen=True)
class FrozenEncoder:
    """The part of a network that sees frames by themselves first, and never learns.

    Attributes:
        encode: standardised frames (N, C, H, W) -> features (N, ...).
        module: whose weights these depend on.
        settings: what else they depend on.
    """

    encode: Callable[[Tensor], Tensor]
    module: nn.Module
    settings: str


class FeatureStore:
    """Features of frames by what they are made of: a file a frame, `features/<encoder>/<frame>.npy`, float32.

    The folder's name is a digest of the encoder's weights, its settings, the precision, and the versions of EchoPlan
    and PyTorch; the file's is one of the frame as the network sees it. So nothing is ever stale, every training of the
    dataset with this encoder shares the files, and they may be removed at any time. Frames are encoded one by one:
    what is found does not depend on the batch a frame comes in. At most half of what is free on the disk at the start
    is taken; further frames are encoded whenever they come.

    Args:
        encoder: of the network.
        folder: the preprocessed dataset.
        step: whose precision and device it has.
        augmented: whether training frames are changed at random, so that none comes again.
    """

    def __init__(self, encoder: FrozenEncoder, folder: Path, step: TrainStep, *, augmented: bool) -> None:
        self.encoder, self.step, self.augmented = encoder, step, augmented
        weights = weights_digest(encoder.module.state_dict())
        parts = (weights, encoder.settings, step.dtype, step.device.type, __version__, torch.__version__)
        name = hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()[:20]
        self.folder = folder / layout.FEATURES / name
        self._room = shutil.disk_usage(folder).free * _SHARE / step.world.size

    @classmethod
    def of_training(cls, method: Method[Any], step: TrainStep, folder: Path) -> FeatureStore | None:
        """Of a method whose network has a frozen encoder."""
        encoder = method.frozen_encoder(step.network)
        augmented = method.recipe.augmentation != "none"
        return None if encoder is None else cls(encoder, folder, step, augmented=augmented)

    def of(self, clip: Tensor) -> Tensor:
        """Frames (B, T, C, H, W) on the CPU -> their features (B, T, ...) float32, on the CPU."""
        return torch.stack([self._of_frame(frame) for frame in clip.flatten(0, 1)]).unflatten(0, clip.shape[:2])

    def _of_frame(self, frame: Tensor) -> Tensor:
        values = frame.contiguous().numpy()
        digest = hashlib.sha256(f"{values.dtype} {values.shape}".encode() + values.tobytes()).hexdigest()[:32]
        file = self.folder / f"{digest}.npy"
        try:
            return torch.from_numpy(np.load(file, allow_pickle=False))
        except (OSError, ValueError, EOFError):  # it is not there, or damaged
            pass
        with torch.no_grad(), self.step.autocast():
            features = self.encoder.encode(frame.unsqueeze(0).to(self.step.device))[0].float().cpu()
        self._room -= features.nbytes
        if self._room > 0:
            with atomic_path(file) as temporary:
                np.save(temporary, features.numpy())
        return features


def with_features(batch: Batch, store: FeatureStore | None, *, training: bool = False) -> Batch:
    """A batch on the CPU with the "features" of its frames, where there is a frozen encoder and they come again."""
    if store is None or (training and store.augmented):
        return batch
    return {**batch, "features": store.of(batch["clip"])}
