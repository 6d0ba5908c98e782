"""What the user of a network may tell it: where, and in which frame, each clip of a batch is begun."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from echoplan.errors import EchoPlanError

AUTOMATIC = ("auto", "point", "box", "mask", "none")
GIVEN_POINT, GIVEN_BOX, GIVEN_MASK = GIVEN = ("given", "given_box", "given_mask")
_KINDS = (*GIVEN, *AUTOMATIC)


@dataclass(frozen=True)
class Prompts:
    """How each clip of a batch is begun. Clips of one batch may be begun in different ways.

    Attributes:
        kinds: for each clip "given", "given_box" or "given_mask", its point, box or mask is used; or an automatic
            prompt that the network makes itself: "auto" (a point and a box), "point", "box", "mask" or "none".
        points: ``(B, 2)``, x and y in pixels of the network's input; read where a point is given.
        frames: the frame that each given prompt lies in. Automatic prompts choose their frame.
        boxes: ``(B, 4)``, x0, y0, x1, y1: the centres of the first and the last column and row inside; read where a box
            is given, and None where none is.
        masks: ``(B, H, W)``, true inside the structure; read where a mask is given, and None where none is.
    """

    kinds: tuple[str, ...]
    points: Tensor
    frames: tuple[int, ...]
    boxes: Tensor | None = None
    masks: Tensor | None = None

    @staticmethod
    def given(points: Tensor, frames: Sequence[int]) -> Prompts:
        """A point ``(B, 2)`` and its frame for every clip."""
        return Prompts((GIVEN_POINT,) * len(points), points, tuple(frames))

    @staticmethod
    def given_boxes(boxes: Tensor, frames: Sequence[int]) -> Prompts:
        """A box ``(B, 4)`` and its frame for every clip."""
        return Prompts((GIVEN_BOX,) * len(boxes), boxes.new_zeros(len(boxes), 2), tuple(frames), boxes=boxes)

    @staticmethod
    def given_masks(masks: Tensor, frames: Sequence[int]) -> Prompts:
        """A mask ``(B, H, W)`` and its frame for every clip."""
        points = torch.zeros(len(masks), 2, device=masks.device)
        return Prompts((GIVEN_MASK,) * len(masks), points, tuple(frames), masks=masks)

    @staticmethod
    def automatic(kinds: Sequence[str]) -> Prompts:
        """The network's own prompts, one kind a clip."""
        return Prompts(tuple(kinds), torch.zeros(len(kinds), 2), (0,) * len(kinds))

    @staticmethod
    def joined(parts: Sequence[Prompts]) -> Prompts:
        """The prompts of several batches as those of one."""
        return Prompts(
            tuple(kind for part in parts for kind in part.kinds),
            torch.cat([part.points for part in parts]),
            tuple(frame for part in parts for frame in part.frames),
            boxes=_joined([part.boxes for part in parts], [len(part.kinds) for part in parts]),
            masks=_joined([part.masks for part in parts], [len(part.kinds) for part in parts]),
        )

    def of_clip(self, index: int) -> Prompts:
        """The prompts of one clip, as a batch of one."""
        one = slice(index, index + 1)
        return replace(
            self,
            kinds=self.kinds[one],
            points=self.points[one],
            frames=self.frames[one],
            boxes=None if self.boxes is None else self.boxes[one],
            masks=None if self.masks is None else self.masks[one],
        )

    def check(self, clips: int, frames: int, size: int) -> None:
        """Raises:
        EchoPlanError: the prompts are not for `clips` clips of `frames` frames of `size` x `size` pixels, or of an
            unknown kind, or what is given is no box or mask.
        """
        counts = [len(each) for each in (self.boxes, self.masks) if each is not None]
        if not len(self.kinds) == len(self.points) == len(self.frames) == clips or set(counts) - {clips}:
            raise EchoPlanError(
                f"there are {clips} clips, but {len(self.kinds)} kinds of prompt, {len(self.points)} points and "
                f"{len(self.frames)} frames{f', and {counts} boxes and masks' if counts else ''}"
            )
        for index, (kind, frame) in enumerate(zip(self.kinds, self.frames, strict=True)):
            if kind not in _KINDS:
                raise EchoPlanError(f"there is no kind of prompt {kind!r}", remedy=f"choose one of {', '.join(_KINDS)}")
            if kind in GIVEN and not 0 <= frame < frames:
                raise EchoPlanError(f"a prompt is given for frame {frame} of a clip of {frames} frames")
            if kind == GIVEN_BOX:
                _check_box(None if self.boxes is None else self.boxes[index])
            if kind == GIVEN_MASK:
                _check_mask(None if self.masks is None else self.masks[index], size)


@dataclass(frozen=True)
class StartPrompt:
    """What one clip is begun with, as SAM2's prompt encoder takes it: P points with SAM2's labels, and a mask.

    Attributes:
        frame: the frame's index.
        points: ``(P, 2)``, x and y in pixels.
        labels: ``(P,)``: 1 inside the structure, 2 and 3 the corners of a box, -1 no point.
        dense: ``(1, H/4, W/4)``, the mask as the prompt encoder reads it; None without a mask.
        answer: ``(1, H, W)`` bool, a mask that is known to be right: it is the frame's answer; else None.
    """

    frame: int
    points: Tensor
    labels: Tensor
    dense: Tensor | None = None
    answer: Tensor | None = None

    @property
    def has_box(self) -> bool:
        """Whether a box is among the points."""
        return len(self.labels) > 1

    def group(self) -> tuple[int, ...]:
        """Prompts of one group may go through the network together."""
        return len(self.labels), int(self.dense is not None), int(self.answer is not None)


def _joined(tensors: Sequence[Tensor | None], counts: Sequence[int]) -> Tensor | None:
    """The tensors in a row, zeros where one is missing; None where all are."""
    known = next((each for each in tensors if each is not None), None)
    if known is None:
        return None
    filled = [
        known.new_zeros(count, *known.shape[1:]) if each is None else each
        for each, count in zip(tensors, counts, strict=True)
    ]
    return torch.cat(filled)


def _check_box(box: Tensor | None) -> None:
    if box is None or box.shape != (4,):
        raise EchoPlanError("a box is to be given, but there is none", remedy="give boxes as (B, 4): x0, y0, x1, y1")
    if not box.is_meta and not (bool(box.isfinite().all()) and bool((box[:2] <= box[2:]).all())):
        raise EchoPlanError(f"{box.tolist()} is no box", remedy="give x0, y0, x1, y1 with x0 <= x1 and y0 <= y1")


def _check_mask(mask: Tensor | None, size: int) -> None:
    if mask is None or mask.shape != (size, size):
        found = "there is none" if mask is None else f"it is {tuple(mask.shape)}"
        raise EchoPlanError(f"a mask of {size} x {size} pixels is to be given, but {found}")
    if not mask.is_meta and not bool(mask.any()):
        raise EchoPlanError("the mask given as a prompt is empty", remedy="choose a frame that shows the structure")
