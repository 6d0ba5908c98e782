"""What has been found in frames of a clip, held until nothing more is to come of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from echoplan.device import upload


class FrameSums:
    """Sums of what is found in a clip's frames; a frame is held until all that is to be added to it has been.

    Args:
        additions: (T,), how many there are to each frame.
    """

    def __init__(self, additions: np.ndarray) -> None:
        self._missing = additions.copy()
        self._sums: dict[int, Tensor] = {}
        self._blocks: dict[tuple[int, ...], Tensor] = {}  # of frames that have always come together
        self._finished: list[tuple[np.ndarray, Tensor]] = []

    @property
    def unfinished(self) -> int:
        """How many frames something is still to be added to."""
        return int(np.count_nonzero(self._missing))

    def add(self, frames: np.ndarray, values: Tensor) -> None:
        """Add `values` (K, n, h, w) to the frames (n,), none of them twice."""
        self._missing[frames] -= 1
        block, missing = tuple(frames.tolist()), self._missing[frames]
        if block in self._blocks:
            values = self._blocks.pop(block) + values
        elif self._holds(block) or (missing.any() and not missing.all()):
            self._add_one_by_one(block, values)
            return
        if missing.any():
            self._blocks[block] = values
        else:
            self._finished.append((frames, values))

    def take(self) -> tuple[np.ndarray, Tensor] | None:
        """Hand out what is finished: frames (n,), ascending, and their sums (K, n, h, w); None where nothing is."""
        finished, self._finished = self._finished, []
        if len(finished) < 2:
            return finished[0] if finished else None
        frames, values = np.concatenate([frames for frames, _ in finished]), torch.cat([v for _, v in finished], dim=1)
        order = np.argsort(frames)
        return frames[order], values.index_select(1, upload(torch.from_numpy(order), values.device))

    def _holds(self, frames: Sequence[int]) -> bool:
        """Whether something has come of any of the frames."""
        held = self._sums.keys() | {frame for block in self._blocks for frame in block}
        return not held.isdisjoint(frames)

    def _add_one_by_one(self, frames: Sequence[int], values: Tensor) -> None:
        for block in list(self._blocks):
            self._sums.update(zip(block, self._blocks.pop(block).unbind(1), strict=True))
        for frame, found in zip(frames, values.unbind(1), strict=True):
            self._sums[frame] = self._sums[frame] + found if frame in self._sums else found
        done = [frame for frame in sorted(self._sums) if not self._missing[frame]]
        if done:
            self._finished.append((np.array(done), torch.stack([self._sums.pop(frame) for frame in done], dim=1)))


class EncodedFrames:
    """What a `FrameEncodingNetwork` made of frames, each held until the last window that sees it has been decoded.

    Args:
        windows: (T,), how many windows see each frame.
    """

    def __init__(self, windows: np.ndarray) -> None:
        self._to_come = windows.copy()
        self._features: dict[int, list[Tensor]] = {}

    def missing(self, windows: Sequence[np.ndarray]) -> list[int]:
        """The windows' frames that are not encoded yet, ascending."""
        return [frame for frame in np.unique(np.concatenate(windows)).tolist() if frame not in self._features]

    def add(self, frames: Sequence[int], features: Sequence[Tensor]) -> None:
        """Take the features of frames, each (1, n, ...)."""
        for place, frame in enumerate(frames):
            self._features[frame] = [values[0, place] for values in features]

    def of(self, windows: Sequence[np.ndarray]) -> list[Tensor]:
        """The features of windows of one length, each (B, T, ...)."""
        seen = np.stack(windows)
        rows = [self._features[frame] for frame in seen.ravel().tolist()]
        return [torch.stack(values).unflatten(0, seen.shape) for values in zip(*rows, strict=True)]

    def let_go(self, windows: Sequence[np.ndarray]) -> None:
        """Note that windows have been decoded."""
        for frame in np.concatenate(windows).tolist():
            self._to_come[frame] -= 1
            if not self._to_come[frame]:
                self._features.pop(frame, None)
