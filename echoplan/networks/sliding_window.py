"""A network over a whole clip: windows in time, averaged where they overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations, islice
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from echoplan.device import is_out_of_memory, mixed_precision, upload
from echoplan.errors import EchoPlanError
from echoplan.networks.batches import BatchSize, network_device
from echoplan.networks.held_frames import EncodedFrames, FrameSums
from echoplan.networks.interface import (
    AbreastNetwork,
    ClipFrames,
    FrameEncodingNetwork,
    FrameIndices,
    StreamingNetwork,
)

_FRAMES_OF_A_STREAM = 16  # of a clip, that are walked before they are handed out
_MIRROR_AXES = {"horizontal": -1, "vertical": -2}


def segment_clip(network: nn.Module, frames: ClipFrames, *, classes: int, **options: Any) -> np.ndarray:
    """The class probabilities of every frame of a clip of any length, (K, T, h, w) float32 in [0, 1].

    Beside `frames`, the returned array is the only thing that grows with the clip's length.

    Args:
        network, frames, classes, options: as `segment_parts` takes them.

    Raises:
        ValueError, EchoPlanError: as `segment_parts`.
    """
    parts = segment_parts(network, frames, classes=classes, **options)
    output = np.empty((classes, *frames.shape), np.float32)
    for indices, probabilities in parts:
        output[:, indices] = probabilities.cpu().numpy()
    return output


def segment_parts(
    network: nn.Module,
    frames: ClipFrames,
    *,
    window: int,
    classes: int,
    clips: Sequence[int] = (),
    stride: int = 1,
    overlap: float = 0.5,
    batch: int | BatchSize = 1,
    mirror_axes: Sequence[str] = (),
    autocast: bool | None = None,
    prompts: Any = None,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """The class probabilities of a clip of any length, part by part: memory does not grow with the clip.

    Windows of `window` frames are taken every `stride` frames, from each of the `stride` starting phases, so that a
    window spans about the time that a training clip spans and every frame is seen. Overlapping predictions are averaged
    with a triangle in time: a frame in the middle of a window has seen more of its past and future than one at the rim.
    A `StreamingNetwork` goes through the whole clip by itself; windows and strides mean nothing to it. Of a
    `FrameEncodingNetwork` each frame is encoded once, for all windows that see it. Clips together are found as if each
    were alone, but for rounding: probabilities to within 1e-4 in float32, and the same masks.

    Args:
        network: takes float32 (B, T, 1, h, w), gives logits (B, T, K, h, w); run in evaluation mode on its own device.
        frames: (T, h, w) float32 and normalised, on any device.
        window: frames in a window; 1 for networks that see one frame at a time.
        classes: K; 1 means a sigmoid, more a softmax.
        clips: the lengths of several clips that follow each other in `frames`; empty: it is one clip.
        stride: frame step inside a window. It shrinks for clips that are shorter than one full window.
        overlap: share of a window that the next one sees again, in [0, 1).
        batch: windows of equal length that go through the network together, or clips that an `AbreastNetwork` walks
            together; fewer where a GPU has too little memory.
        mirror_axes: "horizontal", "vertical" or both: the probabilities are averaged over the flips along them.
        autocast: as `mixed_precision` takes it.
        prompts: what a promptable network's `stream` is told beside the frames of one clip, or what its forward is told
            of each frame, (T, ...); without flips. Never given but to compare prompts.

    Yields:
        indices (n,) of frames, ascending, and their probabilities (K, n, h, w) float32 in [0, 1], on the network's
        device. Each frame comes once, as soon as no window will touch it again; windows move from the first frame to
        the last.

    Raises:
        ValueError: an argument is out of its range.
        EchoPlanError: the network's output has another shape than it must have.
    """
    if len(frames.shape) != 3 or not len(frames):
        raise ValueError(f"frames must be (T, h, w) with T > 0, not {tuple(frames.shape)}")
    clips = clips or [len(frames)]
    if sum(clips) != len(frames):
        raise ValueError(f"{len(frames)} frames are no clips of {clips} frames")
    flips, batch = _flips(mirror_axes), BatchSize(batch) if isinstance(batch, int) else batch
    if prompts is not None and len(flips) * len(clips) > 1:
        raise ValueError("prompts are for one clip at a time and frames as they are, not for flipped ones")
    run = _Run(network, frames, classes, flips, prompts, autocast)
    if isinstance(network, StreamingNetwork):
        return run.of_streams(network, clips, batch)
    return run.of_windows(_windows_of_clips(clips, window=window, stride=stride, overlap=overlap), batch)


def _windows_of_clips(clips: Sequence[int], **laid: Any) -> list[np.ndarray]:
    starts = np.cumsum([0, *clips[:-1]]).tolist()
    return [
        first + indices for first, length in zip(starts, clips, strict=True) for indices in time_windows(length, **laid)
    ]


def time_windows(length: int, *, window: int, stride: int = 1, overlap: float = 0.5) -> list[np.ndarray]:
    """Frame indices of each window over a clip of `length` frames; together they cover every frame.

    A clip that does not fill `window` frames at `stride` is taken with the smallest stride at which one window still
    spans it (each phase then is one shorter window), and a clip of at most `window` frames is one window as it is.

    Raises:
        ValueError: length, window or stride below 1, or overlap outside [0, 1).
    """
    if min(length, window, stride) < 1 or not 0 <= overlap < 1:
        raise ValueError(f"cannot lay windows: {length=}, {window=}, {stride=}, {overlap=}")
    stride = 1 if window == 1 else min(stride, -(-length // window))
    step = max(1, round(window * (1 - overlap)))
    windows = []
    for phase in range(stride):
        indices = np.arange(phase, length, stride)
        last = max(0, len(indices) - window)
        starts = [*range(0, last, step), last]  # the last window ends with the clip, so that none is padded
        windows += [indices[start : start + window] for start in starts]
    return windows


def time_weights(windows: Sequence[np.ndarray], length: int) -> list[np.ndarray]:
    """A weight for each frame of each window: triangles, scaled so that the weights of a frame add up to one."""
    triangles = [np.minimum(np.arange(1, len(w) + 1), np.arange(len(w), 0, -1)).astype(np.float64) for w in windows]
    total = np.zeros(length)
    for indices, triangle in zip(windows, triangles, strict=True):
        total[indices] += triangle
    return [(t / total[indices]).astype(np.float32) for indices, t in zip(windows, triangles, strict=True)]


@dataclass(frozen=True)
class _Run:
    """One network on one clip, as `segment_parts` was told."""

    network: nn.Module
    frames: ClipFrames
    classes: int
    flips: Sequence[tuple[int, ...]]
    prompts: Any
    autocast: bool | None

    def of_windows(self, windows: Sequence[np.ndarray], batch: BatchSize) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Windows averaged where they overlap and over the flips."""
        windows = sorted(windows, key=lambda window: window[0])  # so that frames are soon finished
        shares = self._shares(windows)
        additions = np.bincount(np.concatenate(windows), minlength=len(self.frames))
        sums = FrameSums(additions)
        encoded = [EncodedFrames(additions) for _ in self.flips]
        with _evaluation(self.network):
            for group in _batches(windows, batch):
                found = self._in_memory([windows[i] for i in group], encoded, batch)
                if len(windows[group[0]]) == 1:  # of a single frame a window is the whole truth
                    sums.add(np.concatenate([windows[i] for i in group]), found[:, 0].swapaxes(0, 1))
                else:
                    found = torch.stack([shares[i] for i in group])[:, :, None, None, None] * found
                    for i, prediction in zip(group, found, strict=True):
                        sums.add(windows[i], prediction.swapaxes(0, 1))
                if (part := sums.take()) is not None:
                    yield part

    def of_streams(
        self, network: StreamingNetwork, clips: Sequence[int], batch: BatchSize
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """The network's walks through clips, one for each of the flips, averaged."""
        sums = FrameSums(np.full(len(self.frames), len(self.flips)))
        with _evaluation(self.network):
            walks = [self._walk(network, clips, axes, batch) for axes in self.flips]
            while sums.unfinished:
                for axes, walk in zip(self.flips, walks, strict=True):
                    if walked := next(walk, None):
                        sums.add(*self._of_walk(walked, axes))
                if (part := sums.take()) is not None:
                    yield part

    def _walk(
        self, network: StreamingNetwork, clips: Sequence[int], axes: tuple[int, ...], batch: BatchSize
    ) -> Iterator[list[tuple[int, Tensor]]]:
        """Each frame with its logits, some at a time and these ascending, of as many clips abreast as memory holds."""
        first, known, lengths = 0, set[int](), list(clips)
        while lengths:
            together = lengths[: max(1, batch.windows)] if isinstance(network, AbreastNetwork) else lengths[:1]
            stream = self._stream(network, first, together, axes)
            while walked := self._next(stream, len(together)):
                new = sorted((item for item in walked if item[0] not in known), key=itemgetter(0))
                known.update(frame for frame, _ in new)
                yield new
            if walked is None:  # begun again with fewer; what is known comes once more
                batch.halve(len(together))
                continue
            end = first + sum(together)
            if missing := len(set(range(first, end)) - known):
                raise EchoPlanError(f"the stream of the network {type(network).__name__} left out {missing} frames")
            first, lengths = end, lengths[len(together) :]

    def _stream(
        self, network: StreamingNetwork, first: int, clips: Sequence[int], axes: tuple[int, ...]
    ) -> Iterator[tuple[int, Tensor]]:
        """The logits of all frames of clips that begin at a frame, by the frames' indices."""
        seen = _Streamed(self.frames, first, sum(clips), axes)
        if len(clips) > 1 and isinstance(network, AbreastNetwork):
            walk = network.streams(seen, clips)
        else:
            walk = network.stream(seen, *(() if self.prompts is None else (self.prompts,)))
        for frame, logits in walk:
            self._check_shape(logits, (self.classes, *self.frames.shape[1:]))
            yield first + frame, logits

    def _next(self, stream: Iterator[tuple[int, Tensor]], clips: int) -> list[tuple[int, Tensor]] | None:
        """The next frames of a stream; None where a GPU's memory is too small for so many clips abreast."""
        try:
            with self._computing():
                return list(islice(stream, clips * _FRAMES_OF_A_STREAM))
        except RuntimeError as error:
            if clips < 2 or not is_out_of_memory(error):
                raise
            return None

    def _shares(self, windows: Sequence[np.ndarray]) -> tuple[Tensor, ...]:
        """`time_weights` of all windows, brought to the network's device together."""
        weights = time_weights(windows, len(self.frames))
        together = upload(torch.from_numpy(np.concatenate(weights)), self._device)
        return together.split([len(of_window) for of_window in weights])

    def _in_memory(self, windows: Sequence[np.ndarray], encoded: Sequence[EncodedFrames], batch: BatchSize) -> Tensor:
        """`_probabilities` of windows; half as many at a time, from then on, where a GPU's memory is too small."""
        try:
            return self._probabilities(windows, encoded)
        except RuntimeError as error:
            if len(windows) < 2 or not is_out_of_memory(error):
                raise
        batch.halve(len(windows))
        half = -(-len(windows) // 2)
        return torch.cat([self._in_memory(part, encoded, batch) for part in (windows[:half], windows[half:])])

    def _probabilities(self, windows: Sequence[np.ndarray], encoded: Sequence[EncodedFrames]) -> Tensor:
        """(B, T, K, h, w) float32 of windows of one length, averaged over the flips."""
        shape = (len(windows), len(windows[0]), self.classes, *self.frames.shape[1:])
        with self._computing():
            mean = torch.zeros(shape, device=self._device)
            for axes, known in zip(self.flips, encoded, strict=True):
                logits = self._logits(windows, axes, known)
                self._check_shape(logits, shape)
                probabilities = self._as_probabilities(logits, axis=2)
                mean += (probabilities.flip(axes) if axes else probabilities) / len(self.flips)
        for known in encoded:
            known.let_go(windows)
        return mean

    def _logits(self, windows: Sequence[np.ndarray], axes: tuple[int, ...], known: EncodedFrames) -> Tensor:
        """What the network makes of windows, flipped along some axes."""
        if self.prompts is None and isinstance(self.network, FrameEncodingNetwork):
            if new := known.missing(windows):
                known.add(new, self.network.encode_frames(self._seen([np.array(new)], axes)))
            return self.network.decode_window(known.of(windows))
        told = [] if self.prompts is None else [upload(torch.stack([self.prompts[w] for w in windows]), self._device)]
        logits: Tensor = self.network(self._seen(windows, axes), *told)
        return logits

    def _seen(self, windows: Sequence[np.ndarray], axes: tuple[int, ...]) -> Tensor:
        """Windows (B, T, 1, h, w) as the network sees them."""
        seen = self.frames[upload(torch.from_numpy(np.stack(windows)), self.frames.device)]
        clips = upload(seen, self._device).unsqueeze(2)
        return clips.flip(axes) if axes else clips

    def _of_walk(self, walked: Sequence[tuple[int, Tensor]], axes: tuple[int, ...]) -> tuple[np.ndarray, Tensor]:
        """Some frames of a stream, and their share (K, n, h, w) of the average over the flips."""
        with self._computing():
            probabilities = self._as_probabilities(torch.stack([logits for _, logits in walked], dim=1), axis=0)
            if axes:
                probabilities = probabilities.flip(axes)
            return np.array([index for index, _ in walked]), probabilities / len(self.flips)

    @property
    def _device(self) -> torch.device:
        return network_device(self.network, self.frames.device)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Without gradients and in the precision asked for; never left open while the caller has a part."""
        with torch.inference_mode(), mixed_precision(self._device, self.autocast):
            yield

    def _check_shape(self, logits: object, expected: tuple[int, ...]) -> None:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if found != expected:
            raise EchoPlanError(
                f"the network {type(self.network).__name__} gave {found} where logits {expected} are expected",
                remedy="its forward must return logits (B, T, K, H, W) in evaluation mode, its stream (K, H, W)",
            )

    def _as_probabilities(self, logits: Tensor, *, axis: int) -> Tensor:
        logits = logits.float()
        return logits.sigmoid() if self.classes == 1 else logits.softmax(dim=axis)


class _Streamed:
    """`StreamedFrames` (T, 1, h, w), T frames from a first one on, flipped, as they are asked for."""

    def __init__(self, frames: ClipFrames, first: int, length: int, axes: tuple[int, ...]) -> None:
        self._frames, self._axes = frames, axes
        self._places = range(first, first + length)
        self.shape = (length, 1, *frames.shape[1:])

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, indices: slice | list[int]) -> Tensor:
        if isinstance(indices, slice):
            places = self._places[indices]
            chosen: FrameIndices = slice(places.start, places.stop, places.step)  # no index goes to a GPU
        else:
            chosen = [self._places[index] for index in indices]
        seen = self._frames[chosen].unsqueeze(-3)
        return seen.flip(self._axes) if self._axes else seen


def _batches(windows: Sequence[np.ndarray], batch: BatchSize) -> Iterator[list[int]]:
    """Runs of at most `batch.windows` neighbouring windows with the same number of frames."""
    group: list[int] = []
    for i, indices in enumerate(windows):
        if group and (len(group) >= max(1, batch.windows) or len(windows[group[0]]) != len(indices)):
            yield group
            group = []
        group.append(i)
    yield group


def _flips(mirror_axes: Sequence[str]) -> list[tuple[int, ...]]:
    """The tensor axes of every combination of flips, none included."""
    if set(mirror_axes) - set(_MIRROR_AXES):
        raise ValueError(f"mirror_axes must be of {tuple(_MIRROR_AXES)}, not {tuple(mirror_axes)}")
    axes = sorted({_MIRROR_AXES[name] for name in mirror_axes})
    return [flip for n in range(len(axes) + 1) for flip in combinations(axes, n)]


@contextmanager
def _evaluation(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards the mode it had."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)
