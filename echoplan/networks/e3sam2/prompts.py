"""Where, in which frame and by what each clip is begun: what a user may tell, and what SAM2 reads of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.errors import EchoPlanError
from echoplan.networks.e3sam2.sam2_parts import WIDTH, build_prompt_encoder, sam2_module

AUTOMATIC = ("auto", "point", "box", "mask", "centre", "none")
GIVEN_POINT, GIVEN_BOX, GIVEN_MASK = GIVEN = ("given", "given_box", "given_mask")
_KINDS = (*GIVEN, *AUTOMATIC)
_STRIDE = 4  # of the map in which the coarse head's answer is searched
_POINT, _CORNERS, _NOTHING = 1, (2, 3), -1  # SAM2's labels of prompt points
_LOCATOR_WIDTH = 64


@dataclass(frozen=True)
class Prompts:
    """How each clip of a batch is begun. Clips of one batch may be begun in different ways.

    Attributes:
        kinds: for each clip "given", "given_box" or "given_mask", its point, box or mask is used; or an automatic
            prompt that the network makes itself: "auto" (a point and a box), "point", "box", "mask", "centre" (a point
            in the middle of the picture) or "none".
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

    def within(self, frames: Sequence[int]) -> Prompts | None:
        """The prompts of one clip, for a clip of some of its frames; None where theirs is not among them."""
        (frame,) = self.frames
        return replace(self, frames=(list(frames).index(frame),)) if frame in frames else None

    def of_clip(self, index: int) -> Prompts:
        """The prompts of one clip, as a batch of one."""
        return self[index : index + 1]

    def __getitem__(self, clips: slice) -> Prompts:
        """The prompts of some of the clips."""
        return replace(
            self,
            kinds=self.kinds[clips],
            points=self.points[clips],
            frames=self.frames[clips],
            boxes=None if self.boxes is None else self.boxes[clips],
            masks=None if self.masks is None else self.masks[clips],
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


class Prompting(nn.Module):
    """The coarse head that finds the left ventricle, and SAM2's prompt encoder.

    Args:
        size: side of the square frames in pixels.
        automatic: the kind of prompt where none is given, of `AUTOMATIC`.
        first: clips begin in their first frame, instead of the one that the coarse head is surest of.
        follows: later frames get a dense prompt, made by two convolutions of features that have read the memory.
    """

    def __init__(self, size: int, *, automatic: str, first: bool = False, follows: bool = False) -> None:
        super().__init__()
        self.automatic, self.first = automatic, first
        self.locator = nn.Sequential(
            nn.Conv2d(WIDTH, _LOCATOR_WIDTH, 3, padding=1), nn.GELU(), nn.Conv2d(_LOCATOR_WIDTH, 1, 1)
        )
        self.encoder = build_prompt_encoder(size)
        # SAM2's learned way from a mask to the prompt encoder's grid; without its weights, the mean.
        self.shrink = torch.nn.utils.skip_init(nn.Conv2d, 1, 1, _STRIDE, stride=_STRIDE)
        nn.init.constant_(self.shrink.weight, 1 / _STRIDE**2)
        nn.init.zeros_(self.shrink.bias)
        self.later = _dense_prompt() if follows else None

    def locate(self, top: Tensor) -> Tensor:
        """Top features ``(N, 256, h, w)`` -> logits of the left ventricle ``(N, 1, h, w)``, frame by frame."""
        return self.locator(top)

    def given(self, prompts: Prompts | None) -> StartPrompt | None:
        """How to begin one clip whose prompt is given; None where it has to be found.

        A mask that is given is believed, as SAM2 does with its `use_mask_input_as_output_without_sam`: it is the answer
        in its frame and what is remembered of it; the prompt encoder and the decoder only make the object pointer.
        """
        if prompts is None or prompts.kinds[0] not in GIVEN:
            return None
        frame, device = prompts.frames[0], self.encoder.no_mask_embed.weight.device
        if prompts.kinds[0] == GIVEN_BOX and prompts.boxes is not None:
            corners = prompts.boxes.to(device, torch.float32).view(2, 2)
            return StartPrompt(frame, corners, torch.tensor(_CORNERS, device=device))
        if prompts.kinds[0] == GIVEN_MASK and prompts.masks is not None:
            mask = prompts.masks.to(device, torch.bool)
            return StartPrompt(frame, *_no_point(device), dense=self.shrink(mask.float()), answer=mask)
        return StartPrompt(frame, prompts.points.to(device, torch.float32), torch.tensor([_POINT], device=device))

    @torch.no_grad()
    def found(self, coarse: Tensor, frames: Sequence[int], prompts: Prompts | None) -> StartPrompt:
        """How to begin one clip whose prompt is not given: in the frame that the coarse head is surest of.

        The coarse head's own mask ("mask") is not believed but shown to the prompt encoder, as SAM does with the masks
        of an earlier answer: the decoder makes a finer one of it.

        Args:
            coarse: ``(n, 1, h, w)``, from `locate`, of the frames that may be the first.
            frames: their indices in the clip.
            prompts: this clip's, for the kind; None is the usual one.
        """
        best = 0 if self.first else _first_of_largest(confidence(coarse))
        kind = self.automatic if prompts is None else prompts.kinds[0]
        if kind == "mask":
            dense = _enlarged(coarse[best])[0]
            return StartPrompt(frames[best], *_no_point(coarse.device), dense=dense)
        points, labels = automatic_points(coarse[best], kind)
        return StartPrompt(frames[best], points, torch.tensor(labels, device=coarse.device))

    def embed(self, starts: Sequence[StartPrompt]) -> tuple[Tensor, Tensor]:
        """Tokens ``(n, P, 256)`` and the dense embedding ``(n, 256, h, w)`` for the mask decoder.

        Args:
            starts: n prompts of one `StartPrompt.group`.
        """
        points = torch.stack([start.points for start in starts])
        labels = torch.stack([start.labels for start in starts])
        given = [start.dense for start in starts if start.dense is not None]
        return self.encoder(points=(points, labels), boxes=None, masks=torch.stack(given) if given else None)

    def follow(self, top: Tensor) -> tuple[Tensor, Tensor]:
        """The same for n frames after the first, of their top features ``(n, 256, h, w)`` that have read the memory."""
        if self.later is not None:
            return top.new_zeros(len(top), 0, WIDTH), self.later(top)
        weight = self.encoder.no_mask_embed.weight
        labels = torch.full((len(top), 1), _NOTHING, device=weight.device)
        return self.encoder(points=(weight.new_zeros(len(top), 1, 2), labels), boxes=None, masks=None)

    def positions(self) -> Tensor:
        """The position encoding ``(1, 256, h, w)`` of the decoder's image tokens."""
        return self.encoder.get_dense_pe()


def confidence(coarse: Tensor) -> Tensor:
    """How sure the coarse head is of each frame: the mean probability, weighted by the probability itself.

    Args:
        coarse: logits ``(N, 1, h, w)``.

    Returns:
        ``(N,)`` in (0, 1), float32: near one where the structure stands out wholly, low where it is vague or missing.
    """
    probability = coarse.float().sigmoid().flatten(1)
    return probability.square().sum(dim=1) / probability.sum(dim=1)


def automatic_points(coarse: Tensor, kind: str) -> tuple[Tensor, list[int]]:
    """A point and a box from the coarse head's answer for one frame.

    The point lies deepest inside: where means of the probability over ever wider neighbourhoods add up to the most.
    The box is that of the region that hangs together around the point, where the probability is at least one half (or
    the point's own, where that is less).

    Args:
        coarse: logits ``(1, h, w)``.
        kind: "auto" (both), "point", "box", "centre" or "none".

    Returns:
        ``(P, 2)`` x and y in pixels, the box's corners first; and SAM2's labels of the P points.
    """
    if kind == "none":
        return coarse.new_zeros(1, 2, dtype=torch.float32), [_NOTHING]
    probability = _enlarged(coarse).sigmoid()  # (1, 1, H/4, W/4)
    side = probability.shape[-1]
    if kind == "centre":
        return coarse.new_full((1, 2), (_STRIDE * side - 1) / 2, dtype=torch.float32), [_POINT]
    widths = [width for width in (1, 3, 7, 15, 31) if width <= side]
    depth = reduce(torch.add, (F.avg_pool2d(probability, width, stride=1, padding=width // 2) for width in widths))
    seed = F.one_hot(depth.flatten().argmax(), depth.numel()).view_as(depth).float()
    region = _region_around(seed, probability)
    across, down = (region.amax(dim=axis).flatten() for axis in (-2, -1))  # which columns and rows it takes
    places = torch.arange(side, device=coarse.device)
    column, row = ((seed.amax(dim=axis).flatten() * places).sum() for axis in (-2, -1))
    point = _centre(torch.stack([column, row]))
    first = torch.stack([side - (taken * (side - places)).amax() for taken in (across, down)])
    last = torch.stack([(taken * places).amax() for taken in (across, down)])
    corners = [_centre(first) - (_STRIDE - 1) / 2, _centre(last) + (_STRIDE - 1) / 2]
    if kind == "point":
        return point[None], [_POINT]
    if kind == "box":
        return torch.stack(corners), [*_CORNERS]
    return torch.stack([*corners, point]), [*_CORNERS, _POINT]


def _enlarged(coarse: Tensor) -> Tensor:
    """Logits ``(1, h, w)`` of the coarse head on the prompt encoder's grid, ``(1, 1, H/4, W/4)`` in float32."""
    return F.interpolate(coarse.float()[None], scale_factor=16 // _STRIDE, mode="bilinear")


def _dense_prompt() -> nn.Sequential:
    norm, narrow = sam2_module("modeling.sam2_utils").LayerNorm2d, WIDTH // 2
    return nn.Sequential(
        nn.Conv2d(WIDTH, narrow, 3, padding=1, bias=False),
        norm(narrow),
        nn.GELU(),
        nn.Conv2d(narrow, WIDTH, 3, padding=1, bias=False),
        norm(WIDTH),
        nn.GELU(),
    )


def _no_point(device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.zeros(1, 2, device=device), torch.full((1,), _NOTHING, device=device)


def _region_around(seed: Tensor, probability: Tensor) -> Tensor:
    """The connected region of high probability that holds the seed: the seed, grown a pixel at a time."""
    allowed = (probability >= (probability * seed).sum().clamp(max=0.5)).float()
    region = seed
    for _ in range(probability.shape[-1]):
        region = F.max_pool2d(region, 3, stride=1, padding=1) * allowed
    return region


def _centre(cells: Tensor) -> Tensor:
    """Pixel coordinates of the middle of cells of the stride-4 grid."""
    return cells * _STRIDE + (_STRIDE - 1) / 2


def _first_of_largest(values: Tensor) -> int:
    """The index of the largest value; on the meta device, where there are no values, the first."""
    return 0 if values.is_meta else int(values.argmax())
