"""Prompts: the frame to begin with, and what SAM2 is told about the left ventricle in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.errors import EchoPlanError
from echoplan.networks.e3sam2.sam2_parts import WIDTH, build_prompt_encoder

AUTOMATIC = ("auto", "point", "box", "none")
_GIVEN = "given"
_STRIDE = 4  # of the map in which the coarse head's answer is searched
_POINT, _CORNERS, _NOTHING = 1, (2, 3), -1  # SAM2's labels of prompt points
_LOCATOR_WIDTH = 64


@dataclass(frozen=True)
class Prompts:
    """How each clip of a batch is begun.

    Attributes:
        kinds: for each clip "given", its point is taken as it is; or an automatic prompt that the network makes itself:
            "auto" (a point and a box), "point", "box" or "none".
        points: ``(B, 2)``, x and y in pixels of the network's input; read where a point is given.
        frames: the frame that each given point lies in. Automatic prompts choose their frame.
    """

    kinds: tuple[str, ...]
    points: Tensor
    frames: tuple[int, ...]

    @staticmethod
    def given(points: Tensor, frames: Sequence[int]) -> Prompts:
        """A point ``(B, 2)`` and its frame for every clip."""
        return Prompts((_GIVEN,) * len(points), points, tuple(frames))

    def of_clip(self, index: int) -> Prompts:
        """The prompts of one clip, as a batch of one."""
        return Prompts(self.kinds[index : index + 1], self.points[index : index + 1], self.frames[index : index + 1])

    def check(self, clips: int, frames: int) -> None:
        """Raises:
        EchoPlanError: the prompts are not for `clips` clips of `frames` frames, or of an unknown kind.
        """
        if not len(self.kinds) == len(self.points) == len(self.frames) == clips:
            raise EchoPlanError(
                f"there are {clips} clips, but {len(self.kinds)} kinds of prompt, {len(self.points)} points and "
                f"{len(self.frames)} frames"
            )
        for kind, frame in zip(self.kinds, self.frames, strict=True):
            if kind not in (_GIVEN, *AUTOMATIC):
                raise EchoPlanError(
                    f"there is no kind of prompt {kind!r}", remedy=f"choose one of {', '.join((_GIVEN, *AUTOMATIC))}"
                )
            if kind == _GIVEN and not 0 <= frame < frames:
                raise EchoPlanError(f"a prompt is given for frame {frame} of a clip of {frames} frames")


@dataclass(frozen=True)
class StartPrompt:
    """What one clip is begun with: the frame, and P points with SAM2's labels for them.

    Attributes:
        frame: the frame's index.
        points: ``(P, 2)``, x and y in pixels.
        labels: ``(P,)``: 1 inside the structure, 2 and 3 the corners of a box, -1 no point.
    """

    frame: int
    points: Tensor
    labels: Tensor


class Prompting(nn.Module):
    """The coarse head that finds the left ventricle, and SAM2's prompt encoder.

    Args:
        size: side of the square frames in pixels.
        automatic: the kind of prompt where none is given, of `AUTOMATIC`.
    """

    def __init__(self, size: int, *, automatic: str) -> None:
        super().__init__()
        if automatic not in AUTOMATIC:
            raise EchoPlanError(f"prompt cannot be {automatic!r}", remedy=f"choose one of {', '.join(AUTOMATIC)}")
        self.automatic = automatic
        self.locator = nn.Sequential(
            nn.Conv2d(WIDTH, _LOCATOR_WIDTH, 3, padding=1), nn.GELU(), nn.Conv2d(_LOCATOR_WIDTH, 1, 1)
        )
        self.encoder = build_prompt_encoder(size)

    def locate(self, top: Tensor) -> Tensor:
        """Top features ``(N, 256, h, w)`` -> logits of the left ventricle ``(N, 1, h, w)``, frame by frame."""
        return self.locator(top)

    def given(self, prompts: Prompts | None) -> StartPrompt | None:
        """How to begin one clip whose point is given; None where the point has to be found."""
        if prompts is None or prompts.kinds[0] != _GIVEN:
            return None
        device = self.encoder.no_mask_embed.weight.device
        return StartPrompt(
            prompts.frames[0], prompts.points.to(device, torch.float32), torch.tensor([_POINT], device=device)
        )

    @torch.no_grad()
    def found(self, coarse: Tensor, frames: Sequence[int], prompts: Prompts | None) -> StartPrompt:
        """How to begin one clip whose point is not given: in the frame that the coarse head is surest of.

        Args:
            coarse: ``(n, 1, h, w)``, from `locate`, of the frames that may be the first.
            frames: their indices in the clip.
            prompts: this clip's, for the kind; None is the usual one.
        """
        best = _first_of_largest(confidence(coarse))
        points, labels = automatic_points(coarse[best], self.automatic if prompts is None else prompts.kinds[0])
        return StartPrompt(frames[best], points, torch.tensor(labels, device=coarse.device))

    def embed(self, starts: Sequence[StartPrompt] | int) -> tuple[Tensor, Tensor]:
        """Tokens ``(n, P, 256)`` and the dense embedding ``(n, 256, h, w)`` for the mask decoder.

        Args:
            starts: n prompts with equally many points; or n, for frames without a prompt.
        """
        if isinstance(starts, int):
            weight = self.encoder.no_mask_embed.weight
            points = weight.new_zeros(starts, 1, 2)
            labels = torch.full((starts, 1), _NOTHING, device=weight.device)
        else:
            points = torch.stack([start.points for start in starts])
            labels = torch.stack([start.labels for start in starts])
        return self.encoder(points=(points, labels), boxes=None, masks=None)

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
        kind: "auto" (both), "point", "box" or "none".

    Returns:
        ``(P, 2)`` x and y in pixels, the box's corners first; and SAM2's labels of the P points.
    """
    if kind == "none":
        return coarse.new_zeros(1, 2, dtype=torch.float32), [_NOTHING]
    enlarged = F.interpolate(coarse.float()[None], scale_factor=16 // _STRIDE, mode="bilinear")
    probability = enlarged.sigmoid()  # (1, 1, H/4, W/4)
    side = probability.shape[-1]
    widths = [width for width in (1, 3, 7, 15, 31) if width <= side]
    depth = sum(F.avg_pool2d(probability, width, stride=1, padding=width // 2) for width in widths)
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
