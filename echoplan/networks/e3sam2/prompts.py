"""Where, in which frame and by what each clip is begun: what a user may tell, and what SAM2 reads of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.device import upload
from echoplan.errors import EchoPlanError
from echoplan.networks.e3sam2.sam2_parts import WIDTH, build_prompt_encoder, sam2_module

AUTOMATIC = ("auto", "point", "box", "mask", "centre", "none")
GIVEN_POINT, GIVEN_BOX, GIVEN_MASK = GIVEN = ("given", "given_box", "given_mask")
_KINDS = (*GIVEN, *AUTOMATIC)
_STRIDE = 4  # of the map in which the coarse head's answer is searched
_POINT, _CORNERS, _NOTHING = (1,), (2, 3), (-1,)  # SAM2's labels of prompt points
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

    def to(self, device: torch.device) -> Prompts:
        """On another device."""
        return replace(
            self,
            points=upload(self.points.float(), device),
            boxes=None if self.boxes is None else upload(self.boxes.float(), device),
            masks=None if self.masks is None else upload(self.masks.bool(), device),
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

    def check(self, lengths: Sequence[int], size: int) -> None:
        """Raises:
        EchoPlanError: the prompts are not for clips of so many frames of `size` x `size` pixels, or of an unknown kind,
            or what is given is no box or mask.
        """
        clips = len(lengths)
        counts = [len(each) for each in (self.boxes, self.masks) if each is not None]
        if not len(self.kinds) == len(self.points) == len(self.frames) == clips or set(counts) - {clips}:
            raise EchoPlanError(
                f"there are {clips} clips, but {len(self.kinds)} kinds of prompt, {len(self.points)} points and "
                f"{len(self.frames)} frames{f', and {counts} boxes and masks' if counts else ''}"
            )
        for index, (kind, frame, frames) in enumerate(zip(self.kinds, self.frames, lengths, strict=True)):
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
        labels: of the P points: 1 inside the structure, 2 and 3 the corners of a box, -1 no point.
        dense: ``(1, H/4, W/4)``, the mask as the prompt encoder reads it; None without a mask.
        answer: ``(1, H, W)`` bool, a mask that is known to be right: it is the frame's answer; else None.
    """

    frame: int
    points: Tensor
    labels: tuple[int, ...]
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

    def begin(
        self, coarse: Sequence[Tensor | None], frames: Sequence[Sequence[int]], prompts: Prompts | None
    ) -> list[StartPrompt]:
        """How to begin some clips: as it is told or, where it is not, in the frame that the coarse head is surest of.

        Args:
            coarse: of each clip ``(n, 1, h, w)``, from `locate`, of the frames that may be the first; None where a
                prompt is given.
            frames: their indices in the clip.
            prompts: of all clips, on the network's device; None is the usual kind.
        """
        kinds = [self.automatic] * len(coarse) if prompts is None else prompts.kinds
        found = [index for index, kind in enumerate(kinds) if kind not in GIVEN]
        starts: dict[int, StartPrompt] = {}
        surest = dict(zip(found, self._surest([coarse[index] for index in found]), strict=True))
        for kind in dict.fromkeys(kinds[index] for index in found):
            alike = [index for index in found if kinds[index] == kind]
            best = torch.stack([_known(coarse[index])[surest[index]] for index in alike])
            begun = self._found(best, kind, [frames[index][surest[index]] for index in alike])
            starts.update(zip(alike, begun, strict=True))
        for index, kind in enumerate(kinds):
            if kind in GIVEN and prompts is not None:
                starts[index] = self._given(prompts, index)
        return [starts[index] for index in range(len(kinds))]

    def _surest(self, coarse: Sequence[Tensor | None]) -> list[int]:
        """Which of each clip's frames it begins in; on the meta device, where there are no values, the first."""
        if self.first or not coarse or _known(coarse[0]).is_meta:
            return [0] * len(coarse)
        return torch.stack([confidence(_known(each)).argmax() for each in coarse]).tolist()

    def _given(self, prompts: Prompts, index: int) -> StartPrompt:
        """How to begin a clip whose prompt is given.

        A mask that is given is believed, as SAM2 does with its `use_mask_input_as_output_without_sam`: it is the answer
        in its frame and what is remembered of it; the prompt encoder and the decoder only make the object pointer.
        """
        frame, points = prompts.frames[index], prompts.points[index : index + 1]
        if prompts.kinds[index] == GIVEN_BOX and prompts.boxes is not None:
            return StartPrompt(frame, prompts.boxes[index].view(2, 2), _CORNERS)
        if prompts.kinds[index] == GIVEN_MASK and prompts.masks is not None:
            mask = prompts.masks[index : index + 1]
            return StartPrompt(frame, torch.zeros_like(points), _NOTHING, dense=self.shrink(mask.float()), answer=mask)
        return StartPrompt(frame, points, _POINT)

    @torch.no_grad()
    def _found(self, coarse: Tensor, kind: str, frames: Sequence[int]) -> list[StartPrompt]:
        """Prompts of one kind from the coarse head's answers ``(n, 1, h, w)`` for the start frames of n clips.

        The coarse head's own mask ("mask") is not believed but shown to the prompt encoder, as SAM does with the masks
        of an earlier answer: the decoder makes a finer one of it.
        """
        if kind == "mask":
            nowhere = coarse.new_zeros(1, 2, dtype=torch.float32)
            dense = _enlarged(coarse)
            return [StartPrompt(frame, nowhere, _NOTHING, dense=own) for frame, own in zip(frames, dense, strict=True)]
        points, labels = automatic_points(coarse, kind)
        return [StartPrompt(frame, own, labels) for frame, own in zip(frames, points, strict=True)]

    def embed(self, starts: Sequence[StartPrompt]) -> tuple[Tensor, Tensor]:
        """Tokens ``(n, P, 256)`` and the dense embedding ``(n, 256, h, w)`` for the mask decoder.

        Args:
            starts: n prompts of one `StartPrompt.group`.
        """
        points = torch.stack([start.points for start in starts])
        labels = upload(torch.tensor([start.labels for start in starts]), points.device)
        given = [start.dense for start in starts if start.dense is not None]
        return self.encoder(points=(points, labels), boxes=None, masks=torch.stack(given) if given else None)

    def follower(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Makes the same of the top features ``(n, 256, h, w)`` of frames after the first, which have read the memory.

        What does not depend on the frames is made once.
        """
        if self.later is not None:
            later = self.later
            return lambda top: (top.new_zeros(len(top), 0, WIDTH), later(top))
        weight = self.encoder.no_mask_embed.weight
        nowhere = weight.new_zeros(1, 1, 2), torch.full((1, 1), *_NOTHING, device=weight.device)
        sparse, dense = self.encoder(points=nowhere, boxes=None, masks=None)
        return lambda top: (sparse.expand(len(top), -1, -1), dense.expand(len(top), -1, -1, -1))

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


def automatic_points(coarse: Tensor, kind: str) -> tuple[Tensor, tuple[int, ...]]:
    """A point and a box from the coarse head's answers, each for one frame.

    The point lies deepest inside: where means of the probability over ever wider neighbourhoods add up to the most.
    The box is that of the region that hangs together around the point, where the probability is at least one half (or
    the point's own, where that is less).

    Args:
        coarse: logits ``(n, 1, h, w)``.
        kind: "auto" (both), "point", "box", "centre" or "none".

    Returns:
        ``(n, P, 2)`` x and y in pixels, the box's corners first; and SAM2's labels of the P points.
    """
    if kind == "none":
        return coarse.new_zeros(len(coarse), 1, 2, dtype=torch.float32), _NOTHING
    probability = _enlarged(coarse).sigmoid()  # (n, 1, H/4, W/4)
    side = probability.shape[-1]
    if kind == "centre":
        return coarse.new_full((len(coarse), 1, 2), (_STRIDE * side - 1) / 2, dtype=torch.float32), _POINT
    widths = [width for width in (1, 3, 7, 15, 31) if width <= side]
    depth = reduce(torch.add, (F.avg_pool2d(probability, width, stride=1, padding=width // 2) for width in widths))
    seed = F.one_hot(depth.flatten(1).argmax(dim=1), side * side).view_as(depth).float()
    region = _region_around(seed, probability)
    across, down = (region.amax(dim=axis).flatten(1) for axis in (-2, -1))  # which columns and rows it takes
    places = torch.arange(side, device=coarse.device)
    column, row = ((seed.amax(dim=axis).flatten(1) * places).sum(dim=1) for axis in (-2, -1))
    point = _centre(torch.stack([column, row], dim=1))
    first = torch.stack([side - (taken * (side - places)).amax(dim=1) for taken in (across, down)], dim=1)
    last = torch.stack([(taken * places).amax(dim=1) for taken in (across, down)], dim=1)
    corners = [_centre(first) - (_STRIDE - 1) / 2, _centre(last) + (_STRIDE - 1) / 2]
    if kind == "point":
        return point.unsqueeze(1), _POINT
    if kind == "box":
        return torch.stack(corners, dim=1), _CORNERS
    return torch.stack([*corners, point], dim=1), (*_CORNERS, *_POINT)


def _enlarged(coarse: Tensor) -> Tensor:
    """Logits ``(n, 1, h, w)`` of the coarse head on the prompt encoder's grid, ``(n, 1, H/4, W/4)`` in float32."""
    return F.interpolate(coarse.float(), scale_factor=16 // _STRIDE, mode="bilinear")


def _known(coarse: Tensor | None) -> Tensor:
    assert coarse is not None
    return coarse


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


def _region_around(seed: Tensor, probability: Tensor) -> Tensor:
    """The connected regions of high probability that hold the seeds: the seeds, grown a pixel at a time."""
    own = (probability * seed).sum(dim=(1, 2, 3), keepdim=True)
    allowed = (probability >= own.clamp(max=0.5)).float()
    region = seed
    for _ in range(probability.shape[-1]):
        region = F.max_pool2d(region, 3, stride=1, padding=1) * allowed
    return region


def _centre(cells: Tensor) -> Tensor:
    """Pixel coordinates of the middle of cells of the stride-4 grid."""
    return cells * _STRIDE + (_STRIDE - 1) / 2
