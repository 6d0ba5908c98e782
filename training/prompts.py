"""Prompts for promptable networks, drawn from labels: for training, and for comparison.

A box is (x0, y0, x1, y1) in pixels, x to the right and y down: the centres of the first and the last column and row
that the structure takes. So a structure of one pixel has a box of no extent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

from echoplan.errors import EchoPlanError
from echoplan.networks.e3sam2.prompts import Prompts
from echoplan.networks.interface import StreamingNetwork

from ..preprocessing.store import ClipStore
from .fold import FoldSetup

JITTER = 0.25
BOX_REACH = 0.1  # of the box's side: the noise that SAM's own training boxes have (Kirillov et al. 2023, appendix A)
MEDSAM_REACH = 20 / 1024  # of the image's side: 20 pixels of MedSAM's 1024
BOX_KINDS = ("box", "jittered_box")
LABEL_KINDS = ("point", "jittered", "pixel", *BOX_KINDS, "mask")
MIDDLE = 0.5  # the draw of a comparison's "pixel"
PROMPT_KINDS = ("automatic", *LABEL_KINDS)

Box = tuple[float, float, float, float]


def inner_point(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """(row, column) of the pixel deepest inside a (H, W) mask that is not empty."""
    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), mask.shape)
    return int(row), int(column)


def jittered_point(mask: NDArray[np.bool_], draw: float, *, reach: float = JITTER) -> tuple[int, int]:
    """(row, column) of a pixel of the mask near its deepest, as a hurried hand would click.

    Args:
        mask: (H, W), not empty.
        draw: in [0, 1), chooses among the pixels within reach.
        reach: largest distance from the deepest point, as a share of the square root of the mask's area.
    """
    centre = np.array(inner_point(mask))
    pixels = np.argwhere(mask)
    near = pixels[np.linalg.norm(pixels - centre, axis=1) <= reach * np.sqrt(len(pixels))]
    row, column = near[int(draw * len(near))]
    return int(row), int(column)


def listed_pixel(mask: NDArray[np.bool_], draw: float) -> tuple[int, int]:
    """(row, column) of a pixel of a (H, W) mask that is not empty, wherever it lies; `draw` in [0, 1) chooses.

    E3SAM2's authors begin clips with it: drawn in training, the middle one of the list, row by row, at test time.
    """
    pixels = np.argwhere(mask)
    row, column = pixels[int(draw * len(pixels))]
    return int(row), int(column)


def box_of(mask: NDArray[np.bool_]) -> Box:
    """(x0, y0, x1, y1) of a (H, W) mask.

    Raises:
        ValueError: the mask is empty.
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        raise ValueError("an empty mask has no box")
    return float(columns[0]), float(rows[0]), float(columns[-1]), float(rows[-1])


def jittered_box(mask: NDArray[np.bool_], generator: np.random.Generator, *, reach: float = BOX_REACH) -> Box:
    """The box of a mask, drawn by a hurried hand: each side is moved by chance, within the frame.

    Args:
        mask: (H, W), not empty.
        generator: gives four numbers.
        reach: the farthest move, as a share of the box's own width (for x) or height (for y).

    Raises:
        ValueError: the mask is empty, or `reach` lies outside [0, 0.5).
    """
    draws = torch.from_numpy(generator.random(4))
    moved = move_boxes(torch.tensor(box_of(mask), dtype=torch.float64), draws, size=mask.shape, reach=reach)
    x0, y0, x1, y1 = moved.tolist()
    return x0, y0, x1, y1


def boxes_of_labels(labels: Tensor, *, label: int = 1) -> Tensor:
    """The box of a structure in every frame; NaN where no pixel shows it, as in frames that nobody labelled.

    Args:
        labels: (B, T, H, W), integers.
        label: the structure's.

    Returns:
        (B, T, 4) float32: x0, y0, x1, y1.
    """
    seen = labels == label
    columns, rows = seen.any(dim=-2), seen.any(dim=-1)
    corners = [*(_first(axis) for axis in (columns, rows)), *(_last(axis) for axis in (columns, rows))]
    boxes = torch.stack(corners, dim=-1).float()
    return boxes.masked_fill(~rows.any(dim=-1, keepdim=True), torch.nan)


def jitter_boxes(boxes: Tensor, *, size: tuple[int, int], reach: float = BOX_REACH) -> Tensor:
    """`jittered_box` for a batch of boxes (..., 4); NaN stays NaN.

    Chance comes from torch's generator on the CPU, which checkpoints keep.

    Args:
        boxes: in ordinary memory.
        size: (H, W) of the frames.
        reach: see `jittered_box`.
    """
    return move_boxes(boxes, torch.rand(boxes.shape), size=size, reach=reach)


def widen_boxes(boxes: Tensor, *, size: tuple[int, int], reach: float = MEDSAM_REACH) -> Tensor:
    """Boxes (..., 4) whose sides are moved outwards by chance, within the frame, as MedSAM's training does; NaN stays.

    Args:
        boxes: in ordinary memory; chance comes from torch's generator.
        size: (H, W) of the frames.
        reach: the farthest move, as a share of the frame's longer side.
    """
    draws = torch.rand(boxes.shape) * reach * max(size)
    return _within(boxes + draws * boxes.new_tensor([-1.0, -1.0, 1.0, 1.0]), size)


def move_boxes(boxes: Tensor, draws: Tensor, *, size: tuple[int, int], reach: float) -> Tensor:
    """Boxes (..., 4) whose sides are moved by draws (..., 4) in [0, 1): a half moves nothing; see `jittered_box`.

    Raises:
        ValueError: `reach` lies outside [0, 0.5), so that sides could change places.
    """
    if not 0 <= reach < 0.5:
        raise ValueError(f"reach must be at least 0 and less than 0.5, not {reach}")
    extent = boxes[..., 2:] - boxes[..., :2]
    return _within(boxes + (2 * draws - 1) * reach * torch.cat([extent, extent], dim=-1), size)


def _within(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The part of boxes that lies in a frame."""
    height, width = size
    limits = torch.tensor([width, height, width, height], device=boxes.device, dtype=boxes.dtype) - 1
    return boxes.clamp_min(0).minimum(limits)


def prompt_from_label(mask: NDArray[np.bool_], *, kind: str, frame: int, draw: float, reach: float = JITTER) -> Prompts:
    """The prompt that a label makes for one clip.

    Args:
        mask: (H, W) of the network's input, not empty.
        kind: "point" (the deepest pixel), "jittered" (one near it), "pixel" (any, see `listed_pixel`), "box" (the
            label's own), "jittered_box" (with its sides moved), or "mask" (the label itself).
        frame: the label's frame in the clip.
        draw: in [0, 1): the chance in what is jittered.
        reach: of points, see `jittered_point`.
    """
    if kind == "mask":
        return Prompts.given_masks(torch.from_numpy(mask)[None], [frame])
    if kind in BOX_KINDS:
        exact = kind == "box"
        box = box_of(mask) if exact else jittered_box(mask, np.random.default_rng(int(draw * 2**53)))
        return Prompts.given_boxes(torch.tensor([box], dtype=torch.float32), [frame])
    if kind == "pixel":
        point = listed_pixel(mask, draw)
    else:
        point = inner_point(mask) if kind == "point" else jittered_point(mask, draw, reach=reach)
    return Prompts.given(pixel_centres([point]), [frame])


def draw_prompts(
    labels: Tensor,
    *,
    automatic: str,
    shares: Mapping[str, float],
    reach: float = JITTER,
    first: bool = False,
    draw: float | None = None,
) -> Prompts:
    """Prompts for the clips of a training batch: some get one from their labels, the others begin by themselves.

    Clips without a visible structure always begin by themselves. Chance comes from torch's generator on the CPU, which
    checkpoints keep.

    Args:
        labels: (B, T, H, W), 1 is the structure, 255 unknown; in ordinary memory.
        automatic: the kind of prompt of the other clips.
        shares: chances of the kinds that labels make (`LABEL_KINDS`), which add up to 1 at most.
        reach: see `jittered_point`.
        first: prompts lie in the first frame or nowhere.
        draw: instead of chance, in what is jittered.
    """
    alone = Prompts.automatic([automatic])
    frames_seen = (labels == 1).flatten(2).any(dim=2).tolist()
    drawn = []
    for clip, seen in enumerate(frames_seen):
        kind_draw, frame_draw, jitter_draw = torch.rand(3).tolist()
        visible = [frame for frame, shows in enumerate(seen[:1] if first else seen) if shows]
        kind = _drawn_kind(kind_draw, shares)
        if not visible or kind is None:
            drawn.append(alone)
            continue
        frame = visible[int(frame_draw * len(visible))]
        mask = (labels[clip, frame] == 1).numpy()
        own_draw = jitter_draw if draw is None else draw
        drawn.append(prompt_from_label(mask, kind=kind, frame=frame, draw=own_draw, reach=reach))
    return Prompts.joined(drawn)


def _drawn_kind(draw: float, shares: Mapping[str, float]) -> str | None:
    reached = 0.0
    for kind in LABEL_KINDS:
        reached += shares.get(kind, 0.0)
        if draw < reached:
            return kind
    return None


def prompt_of_case(store: ClipStore, case: str, *, kind: str, seed: int = 0) -> Prompts | None:
    """How a stored case is begun in a comparison: the papers point at the first labelled frame.

    Args:
        store: with the case's labels.
        case: its name; it also fixes the jitter's chance.
        kind: of `PROMPT_KINDS`.
        seed: another one jitters otherwise.

    Returns:
        a prompt for one clip; None to begin by itself, also where no label shows the structure.
    """
    if kind == "automatic":
        return None
    for frame in store.case(case).labelled_frames:
        mask = store.labels(case, [frame])[0] == 1
        if mask.any():
            draw = MIDDLE if kind == "pixel" else case_draw(case, seed=seed)
            return prompt_from_label(mask, kind=kind, frame=frame, draw=draw)
    return None


def boxes_of_frames(
    masks: Mapping[int, NDArray[np.bool_]], length: int, *, kind: str, case: str, seed: int = 0
) -> Tensor:
    """The boxes of a case for a network that takes one a frame.

    Args:
        masks: frame -> (H, W) of the network's input.
        length: T, of the clip.
        kind: "box" or "jittered_box".
        case: fixes the jitter's chance, with `seed`.

    Returns:
        (T, 4) float32; NaN in frames without a mask, or with an empty one.
    """
    boxes = torch.full((length, 4), torch.nan)
    generator = np.random.default_rng([seed, *case.encode()])
    for frame, mask in sorted(masks.items()):
        if mask.any():
            boxes[frame] = torch.tensor(box_of(mask) if kind == "box" else jittered_box(mask, generator))
    return boxes


def prompt_kinds(network: nn.Module) -> tuple[str, ...]:
    """The kinds of prompt that a network can be compared with, of `PROMPT_KINDS`.

    Raises:
        EchoPlanError: it takes no prompts.
    """
    if isinstance(network, StreamingNetwork) and "prompts" in signature(network.stream).parameters:
        return PROMPT_KINDS
    if "boxes" in signature(network.forward).parameters:
        return ("automatic", *BOX_KINDS)
    raise EchoPlanError(
        f"{type(network).__name__} takes no prompts",
        remedy="choose E3SAM2Trainer, SAM2Trainer, SAMTrainer or MedSAMTrainer",
    )


class CasePrompts:
    """What a network is told of each of a fold's cases, in a comparison of prompts.

    Args:
        network: of which `prompt_kinds` knows the kind.
        setup: the fold.
        kind: the kind of prompt.

    Attributes:
        begun: case -> the frame that it was begun in, for networks that go through a clip.
    """

    def __init__(self, network: nn.Module, setup: FoldSetup, kind: str) -> None:
        self.streams = isinstance(network, StreamingNetwork)
        self.setup, self.kind = setup, kind
        self.begun: dict[str, int] = {}

    def __call__(self, case: str) -> Prompts | Tensor | None:
        """A clip's prompt, or boxes (T, 4); None to begin by itself."""
        store = self.setup.store
        if self.streams:
            prompts = prompt_of_case(store, case, kind=self.kind)
            if prompts is not None:
                self.begun[case] = prompts.frames[0]
            return prompts
        if self.kind == "automatic":
            return None
        stored = store.case(case)
        labels = store.labels(case, stored.labelled_frames)
        masks = dict(zip(stored.labelled_frames, labels == 1, strict=True))
        return boxes_of_frames(masks, stored.native_frames, kind=self.kind, case=case)


def without_begun(per_case: Mapping[str, Any], begun: Mapping[str, int]) -> dict[str, Any]:
    """Cases of a summary.json without the frames that they were begun in."""
    return {
        case: {**judged, "frames": [frame for frame in judged["frames"] if frame["frame"] != begun.get(case)]}
        for case, judged in per_case.items()
    }


def case_draw(case: str, *, seed: int = 0) -> float:
    """A case's own chance in [0, 1), the same in every run."""
    return float(np.random.default_rng([seed, *case.encode()]).random())


def pixel_centres(points: Sequence[tuple[int, int]]) -> Tensor:
    """(row, column) of n pixels -> (n, 2) float32 x and y, as prompts have them."""
    return torch.tensor([(column, row) for row, column in points], dtype=torch.float32)


def _first(taken: Tensor) -> Tensor:
    return taken.byte().argmax(dim=-1)


def _last(taken: Tensor) -> Tensor:
    return taken.shape[-1] - 1 - taken.flip(-1).byte().argmax(dim=-1)
