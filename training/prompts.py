"""Points that tell a promptable network where the ventricle is, drawn from labels: for training, and for comparison."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from echoplan.networks.e3sam2 import Prompts

from ..preprocessing.store import ClipStore

JITTER = 0.25
PROMPT_KINDS = ("automatic", "point", "jittered")


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


def draw_prompts(
    labels: Tensor, *, automatic: str, point_share: float, jittered_share: float, reach: float = JITTER
) -> Prompts:
    """Prompts for the clips of a training batch: some get a point from their labels, the others begin by themselves.

    Clips without a visible structure always begin by themselves. Chance comes from torch's generator on the CPU, which
    checkpoints keep.

    Args:
        labels: (B, T, H, W), 1 is the structure, 255 unknown.
        automatic: the kind of prompt of the other clips.
        point_share, jittered_share: chances of the deepest point, and of one near it.
        reach: see `jittered_point`.
    """
    if labels.is_meta:  # a rehearsal, where labels have no values
        return Prompts((automatic,) * len(labels), pixel_centres([(0, 0)] * len(labels)), (0,) * len(labels))
    found = (labels == 1).flatten(2).any(dim=2).tolist()
    kinds, points, frames = [], [], []
    for clip, seen in enumerate(found):
        kind_draw, frame_draw, point_draw = torch.rand(3).tolist()
        visible = [frame for frame, shows in enumerate(seen) if shows]
        if not visible or kind_draw >= point_share + jittered_share:
            kinds.append(automatic)
            points.append((0, 0))
            frames.append(0)
            continue
        frame = visible[int(frame_draw * len(visible))]
        mask = (labels[clip, frame] == 1).cpu().numpy()
        exact = kind_draw < point_share
        kinds.append("given")
        points.append(inner_point(mask) if exact else jittered_point(mask, point_draw, reach=reach))
        frames.append(frame)
    return Prompts(tuple(kinds), pixel_centres(points), tuple(frames))


def prompt_of_case(store: ClipStore, case: str, *, kind: str, seed: int = 0) -> Prompts | None:
    """How a stored case is begun in a comparison: the papers point at the first labelled frame.

    Args:
        store: with the case's labels.
        case: its name; it also fixes the jitter's chance.
        kind: "automatic", "point" (the deepest of the label) or "jittered" (one near it).
        seed: another one jitters otherwise.

    Returns:
        a prompt for one clip; None to begin by itself, also where no label shows the structure.
    """
    if kind == "automatic":
        return None
    for frame in store.properties(case)["labelled_frames"]:
        mask = store.labels(case, [frame])[0] == 1
        if mask.any():
            draw = float(np.random.default_rng([seed, *case.encode()]).random())
            point = inner_point(mask) if kind == "point" else jittered_point(mask, draw)
            return Prompts.given(pixel_centres([point]), [frame])
    return None


def pixel_centres(points: Sequence[tuple[int, int]]) -> Tensor:
    """(row, column) of n pixels -> (n, 2) float32 x and y, as prompts have them."""
    return torch.tensor([(column, row) for row, column in points], dtype=torch.float32)
