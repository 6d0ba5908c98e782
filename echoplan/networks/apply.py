"""A network over a whole clip: windows in time, averaged where they overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from echoplan.device import fast_dtype
from echoplan.errors import EchoPlanError
from echoplan.networks.streaming import StreamingNetwork

_MIRROR_AXES = {"horizontal": -1, "vertical": -2}


def segment_clip(
    network: nn.Module,
    frames: Tensor,
    *,
    window: int,
    classes: int,
    normalise: Callable[[Tensor], Tensor] = Tensor.float,
    stride: int = 1,
    overlap: float = 0.5,
    batch: int = 1,
    mirror_axes: Sequence[str] = (),
    autocast: bool = False,
    prompts: Any = None,
) -> np.ndarray:
    """The class probabilities of every frame of a clip of any length.

    Windows of `window` frames are taken every `stride` frames, from each of the `stride` starting phases, so that a
    window spans about the time that a training clip spans and every frame is seen. Overlapping predictions are averaged
    with a triangle in time: a frame in the middle of a window has seen more of its past and future than one at the rim.
    Beside `frames`, the returned array is the only thing that grows with the clip's length. A `StreamingNetwork` goes
    through the whole clip by itself; windows, strides and batches mean nothing to it.

    Args:
        network: takes float32 (B, T, 1, h, w), gives logits (B, T, K, h, w); run in evaluation mode on its own device.
        frames: (T, h, w), on any device; float32 and normalised, unless `normalise` does that.
        window: frames in a window; 1 for networks that see one frame at a time.
        classes: K; 1 means a sigmoid, more a softmax.
        normalise: makes some frames what the network sees, float32; a long clip's bytes need not all be floats at once.
        stride: frame step inside a window. It shrinks for clips that are shorter than one full window.
        overlap: share of a window that the next one sees again, in [0, 1).
        batch: windows of equal length that go through the network together.
        mirror_axes: "horizontal", "vertical" or both: the probabilities are averaged over the flips along them.
        autocast: mixed precision, where the device computes faster in it.
        prompts: what a promptable network's `stream` is told beside the frames, or what its forward is told of each
            frame, (T, ...); without flips. Never given but to compare prompts.

    Returns:
        (K, T, h, w) float32 in [0, 1].

    Raises:
        ValueError: an argument is out of its range.
        EchoPlanError: the network's output has another shape than it must have.
    """
    if frames.ndim != 3 or not len(frames):
        raise ValueError(f"frames must be (T, h, w) with T > 0, not {tuple(frames.shape)}")
    flips = _flips(mirror_axes)
    if prompts is not None and len(flips) > 1:
        raise ValueError("prompts are for frames as they are, not for flipped ones")
    device = next(chain(network.parameters(), network.buffers()), frames).device
    output = np.zeros((classes, *frames.shape), np.float32)
    with _evaluation(network), torch.inference_mode(), _autocast(device, autocast):
        if isinstance(network, StreamingNetwork):
            return _streamed(network, normalise(frames), output, flips, prompts)
        windows = time_windows(len(frames), window=window, stride=stride, overlap=overlap)
        _add_windows(network, frames, normalise, windows, batch, flips, prompts, device, output)
    return output


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


def _add_windows(
    network: nn.Module,
    frames: Tensor,
    normalise: Callable[[Tensor], Tensor],
    windows: Sequence[np.ndarray],
    batch: int,
    flips: Sequence[tuple[int, ...]],
    prompts: Any,
    device: torch.device,
    output: np.ndarray,
) -> None:
    """Fill `output` (K, T, h, w) from windows, averaged where they overlap and over the flips."""
    weights = time_weights(windows, len(frames))
    for group in _batches(windows, batch):
        seen = [normalise(frames[torch.as_tensor(windows[i], device=frames.device)]) for i in group]
        clips = torch.stack(seen).unsqueeze(2).to(device, torch.float32)
        told = () if prompts is None else (torch.stack([prompts[windows[i]] for i in group]).to(device),)
        probabilities = _probabilities(network, clips, len(output), flips, told)
        for i, prediction in zip(group, probabilities.cpu().numpy(), strict=True):
            output[:, windows[i]] += weights[i][None, :, None, None] * prediction.swapaxes(0, 1)


def _streamed(
    network: StreamingNetwork, frames: Tensor, output: np.ndarray, flips: Sequence[tuple[int, ...]], prompts: Any
) -> np.ndarray:
    """Fill `output` (K, T, h, w) from the network's stream, averaged over the flips."""
    clip = frames.unsqueeze(1)
    told = () if prompts is None else (prompts,)
    for axes in flips:
        for index, logits in network.stream(clip.flip(axes) if axes else clip, *told):
            _check_shape(network, logits, (len(output), *frames.shape[1:]))
            probabilities = _as_probabilities(logits, len(output), axis=0)
            output[:, index] += (probabilities.flip(axes) if axes else probabilities).cpu().numpy() / len(flips)
    return output


def _batches(windows: Sequence[np.ndarray], batch: int) -> Iterator[list[int]]:
    """Runs of at most `batch` neighbouring windows with the same number of frames."""
    group: list[int] = []
    for i, indices in enumerate(windows):
        if group and (len(group) >= max(1, batch) or len(windows[group[0]]) != len(indices)):
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


def _probabilities(
    network: nn.Module, clips: Tensor, classes: int, flips: Sequence[tuple[int, ...]], told: tuple[Tensor, ...] = ()
) -> Tensor:
    """(B, T, K, h, w) float32, averaged over the flips of the last two axes."""
    mean = torch.zeros((*clips.shape[:2], classes, *clips.shape[3:]), device=clips.device)
    for axes in flips:
        logits = network(clips.flip(axes) if axes else clips, *told)
        _check_shape(network, logits, tuple(mean.shape))
        probabilities = _as_probabilities(logits, classes, axis=2)
        mean += (probabilities.flip(axes) if axes else probabilities) / len(flips)
    return mean


def _check_shape(network: object, logits: object, expected: tuple[int, ...]) -> None:
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != expected:
        raise EchoPlanError(
            f"the network {type(network).__name__} gave {found} where logits {expected} are expected",
            remedy="its forward must return logits (B, T, K, H, W) in evaluation mode, its stream (K, H, W) a frame",
        )


def _as_probabilities(logits: Tensor, classes: int, *, axis: int) -> Tensor:
    logits = logits.float()
    return logits.sigmoid() if classes == 1 else logits.softmax(dim=axis)


@contextmanager
def _evaluation(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards the mode it had."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


def _autocast(device: torch.device, wanted: bool) -> torch.autocast:
    dtype = fast_dtype(device)
    return torch.autocast(device.type, dtype=dtype, enabled=wanted and dtype != torch.float32)
