"""SAM put together with the locator that boxes what nobody boxed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.device import upload
from echoplan.errors import EchoPlanError
from echoplan.networks.interface import ClipOutput, StreamedFrames
from echoplan.networks.sam import graphs
from echoplan.networks.sam.locator import GRID, Locator, Resize, found_boxes, rescale_as_rectangles, rescale_boxes
from echoplan.networks.sam.parts import (
    WIDTH,
    build_image_encoder,
    build_mask_decoder,
    build_prompt_encoder,
    decode_mask,
)
from echoplan.networks.sam.settings import LEARNING_PARTS, SAMSettings, enlarged_size
from echoplan.networks.steps import Graph, Run
from echoplan.networks.weights import find_weights, load_weights

_MEAN, _DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of SAM's training images
_WHITE = 255.0
_CHUNK = 8  # frames that go through the encoder together at inference
_OURS = ("locator.",)


class SAM(nn.Module):
    """`sam`: SAM, MedSAM or LiteMedSAM, one box a frame, frame by frame.

    Frames are brought to `encoder_size` (SAM's own is 1024) by their longest side and padded to a square, as the paper
    and SAM's package do. The box comes from outside, or from a small U-Net inside the network (`Locator`), which learns
    from the same labels in the same steps and shares no weight with SAM. A network trained on a fold's training cases
    so boxes that fold's validation cases by what it learned from the training cases alone. SAM segments one object a
    box, so `classes` must be 1.

    SAM's pixels: a frame's darkest is taken for 0 and its brightest for 255, which undoes the standardisation of the
    clip where the video used its full range; then SAM's own mean and deviation. MedSAM's: the same range as 0 to 1,
    enlarged by cubic splines, LiteMedSAM's linearly.

    Args:
        settings: see `SAMSettings`.
        size: the frames' height and width; any.
        classes: 1.
        pretrained: True finds the weights of the model, a path names their file.

    Raises:
        EchoPlanError: a number of classes it cannot take, or weights that cannot be had.
    """

    pixel_mean: Tensor
    pixel_deviation: Tensor

    def __init__(
        self,
        settings: SAMSettings,
        *,
        size: tuple[int, int],
        classes: int = 1,
        pretrained: bool | str | Path = False,
    ) -> None:
        super().__init__()
        if classes != 1:
            raise EchoPlanError(
                f"SAM segments one object, not {classes} classes", remedy="convert the dataset with one structure"
            )
        if min(size) < 1:
            raise EchoPlanError(f"frames of {size[0]} x {size[1]} pixels are not possible")
        self.model = settings.model
        self.encoder_size = settings.encoder_size
        self.box_kind = settings.boxes
        self.box_margin = settings.box_margin
        self.image_encoder = build_image_encoder(settings.encoder)
        self.prompt_encoder = build_prompt_encoder(settings.encoder_size, stride=self.image_encoder.stride)
        self.mask_decoder = build_mask_decoder()
        self.locator = Locator()
        self.register_buffer("pixel_mean", torch.tensor(_MEAN).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_deviation", torch.tensor(_DEVIATION).view(-1, 1, 1), persistent=False)
        self._let_learn(settings.learning_part)
        if pretrained:
            path = find_weights(settings.weights_name, path=pretrained)
            load_weights(self, path, new=_OURS)

    def _let_learn(self, part: str) -> None:
        """Let a part of `LEARNING_PARTS` learn, the locator always, and nothing else.

        What no box ever reaches stays as it is: the masks for ambiguous prompts, the predicted IoU, and the embeddings
        of points and masks as prompts.
        """
        decoder, prompts = self.mask_decoder, self.prompt_encoder
        steps = {
            "locator": self.locator,
            "decoder": decoder,
            "all_but_prompt_encoder": self.image_encoder,
            "all": prompts,
        }
        self.requires_grad_(False)
        for name in LEARNING_PARTS[: LEARNING_PARTS.index(part) + 1]:
            steps[name].requires_grad_(True)
        for unused in (
            decoder.iou_prediction_head,
            decoder.output_hypernetworks_mlps[1:],
            prompts.point_embeddings[:2],
            prompts.not_a_point_embed,
            prompts.mask_downscaling,
        ):
            unused.requires_grad_(False)

    @property
    def encoder_learns(self) -> bool:
        """Whether `embed` changes in training."""
        return any(parameter.requires_grad for parameter in self.image_encoder.parameters())

    def train(self, mode: bool = True) -> SAM:
        """An image encoder that does not learn keeps the statistics of its batch normalisation, too."""
        super().train(mode)
        if not self.encoder_learns:
            self.image_encoder.eval()
        return self

    def forward(self, clip: Tensor, boxes: Tensor | None = None, features: Tensor | None = None) -> Tensor | ClipOutput:
        """``(B, T, C, H, W)`` with C = 1 or 3 -> logits ``(B, T, 1, H, W)``, in training mode a `ClipOutput`.

        In training mode the auxiliary part holds "locator" ``(B, T, 1, 128, 128)``, the locator's logits, and "masks"
        ``(B, T, 1, S / 4, S / 4)``, the logits of the padded square of the encoder's size S.

        Args:
            clip: standardised frames.
            boxes: ``(B, T, 4)``, x0, y0, x1, y1 in pixel centres of the frames, as `training.prompts` makes them; NaN
                in frames without a box, which the locator boxes. None leaves all frames to it.
            features: ``(B, T, 256, h, w)``, what `embed` gives of the frames, where that is known.

        Raises:
            EchoPlanError: the boxes are not one a frame.
        """
        if boxes is not None and boxes.shape != (*clip.shape[:2], 4):
            raise EchoPlanError(
                f"boxes are {tuple(boxes.shape)} where one a frame, {(*clip.shape[:2], 4)}, is expected",
                remedy="give x0, y0, x1, y1 for every frame of every clip, NaN where there is none",
            )
        frames, known = clip.flatten(0, 1), None if features is None else features.flatten(0, 1)
        if self.training:
            found = self.locator(clip)
            boxes = self._complete(boxes, clip, found)
            masks = self.segment(frames, boxes.flatten(0, 1), known)
            logits = self._on_frames(masks, frames.shape[-2:]).unflatten(0, clip.shape[:2])
            return ClipOutput(logits, {"locator": found, "masks": masks.unflatten(0, clip.shape[:2])})
        boxes = self._complete(boxes, clip).flatten(0, 1)
        parts = [slice(start, start + _CHUNK) for start in range(0, len(frames), _CHUNK)]
        squares = [self.segment(frames[part], boxes[part], None if known is None else known[part]) for part in parts]
        return self._on_frames(torch.cat(squares), clip.shape[-2:]).unflatten(0, clip.shape[:2])

    def embed(self, frames: Tensor, *, resize: Resize | None = None) -> Tensor:
        """Standardised frames ``(N, C, H, W)`` -> the image encoder's features ``(N, 256, h, w)``.

        `resize`: see `prepare`.
        """
        features: Tensor = self.image_encoder(self.prepare(frames, resize=resize))
        return features

    def segment(self, frames: Tensor, boxes: Tensor, features: Tensor | None = None) -> Tensor:
        """Frames ``(N, C, H, W)`` with a box each, ``(N, 4)`` -> logits ``(N, 1, S / 4, S / 4)`` of SAM's square.

        `features`: see `forward`.
        """
        return self._decode(self.embed(frames) if features is None else features, boxes, frames.shape[-2:])

    def _decode(self, features: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
        """What `segment` gives, of the features of frames (H, W)."""
        enlarge = rescale_boxes if self.box_kind == "centres" else rescale_as_rectangles
        told = enlarge(boxes, old=size, new=self._inner_size(size))
        return decode_mask(self.mask_decoder, self.prompt_encoder, features, told).float()

    def _on_frames(self, masks: Tensor, size: Sequence[int]) -> Tensor:
        """SAM's square on the frames' own grid ``(N, 1, H, W)``.

        SAM enlarges masks to the encoder's size, cuts the padding off, and resizes what is left. All of it is linear
        and the same for every row, or column, so that no mask of the encoder's size has to be made.
        """
        rows, columns = (
            self._way_back(masks.shape[-1], inner, goal, masks.device)
            for inner, goal in zip(self._inner_size(size), size, strict=True)
        )
        with torch.autocast("cpu" if masks.is_meta else masks.device.type, enabled=False):
            return rows @ masks @ columns.T

    def _way_back(self, side: int, inner: int, goal: int, device: torch.device) -> Tensor:
        """What becomes of one axis of a mask, ``(goal, side)``."""
        axis = torch.eye(side, device=device).unsqueeze(0)
        whole = F.interpolate(axis, self.encoder_size, mode="linear", align_corners=False)
        return F.interpolate(whole[..., :inner], goal, mode="linear", align_corners=False)[0].T

    def prepare(self, frames: Tensor, *, resize: Resize | None = None) -> Tensor:
        """Standardised frames ``(N, C, H, W)`` -> what the image encoder was trained on, ``(N, 3, S, S)``.

        `resize` brings frames to the size that they have in that square; None: PyTorch's own.
        """
        side, inner = self.encoder_size, self._inner_size(frames.shape[-2:])
        resize = resize or partial(
            F.interpolate, size=inner, mode=self._way_of_resizing, align_corners=False, antialias=True
        )
        frames = frames.float()
        if self.model != "sam":
            images = _unit_range(resize(frames)).expand(-1, 3, -1, -1)
        else:
            images = (resize(_unit_range(frames) * _WHITE) - self.pixel_mean) / self.pixel_deviation
        return F.pad(images, (0, side - inner[1], 0, side - inner[0]))

    @property
    def _way_of_resizing(self) -> str:
        return "bicubic" if self.model == "medsam" else "bilinear"

    def _inner_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Of frames (H, W), in the encoder's square."""
        return enlarged_size(size, self.encoder_size)

    @torch.no_grad()
    def graphs(self, size: tuple[int, int]) -> dict[str, Graph]:
        """See `SteppingNetwork`."""
        features = (1, WIDTH, *[self.encoder_size // self.image_encoder.stride] * 2)
        return graphs.graphs_of(_EncoderStep(self, size), _DecoderStep(self, size), size=size, features=features)

    def walk(self, frames: StreamedFrames, run: Run) -> Iterator[tuple[int, Tensor]]:
        """See `SteppingNetwork`; no frame depends on another."""
        return graphs.walk(frames, run, margin=self.box_margin)

    def program(self) -> list[str]:
        """See `SteppingNetwork`."""
        return graphs.program(margin=self.box_margin)

    def _complete(self, boxes: Tensor | None, clip: Tensor, found: Tensor | None = None) -> Tensor:
        """The boxes, with the locator's where there is none; `found` is its answer where that is known."""
        if boxes is not None and not boxes.is_meta and not bool(boxes.isnan().any()):
            return upload(boxes, clip.device)
        found = self.locator(clip) if found is None else found
        own = found_boxes(found, size=clip.shape[-2:], margin=self.box_margin)
        if boxes is None:
            return own
        boxes = upload(boxes, clip.device)
        return torch.where(boxes.isnan(), own, boxes.to(own))


class _EncoderStep(nn.Module):
    """A frame ``(1, C, H, W)`` -> its features ``(1, 256, h, w)`` and the locator's logits ``(1, 1, 128, 128)``."""

    def __init__(self, network: SAM, size: tuple[int, int]) -> None:
        super().__init__()
        self.network = network
        self.enlarge = graphs.Resized(size, network._inner_size(size), network._way_of_resizing)
        self.reduce = graphs.Resized(size, GRID, "bilinear")

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        features = self.network.embed(frames, resize=self.enlarge)
        return features, self.network.locator(frames[None], resize=self.reduce)[0]


class _DecoderStep(nn.Module):
    """A frame's features and its box ``(1, 4)``, in pixel centres of the frame -> logits ``(1, 1, H, W)``."""

    def __init__(self, network: SAM, size: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, features: Tensor, box: Tensor) -> tuple[Tensor]:
        """See the class."""
        return (self.network._on_frames(self.network._decode(features, box, self.size), self.size),)


def _unit_range(frames: Tensor) -> Tensor:
    """Each frame's values as 0 (its least) to 1 (its greatest); a frame of one value is all zeros."""
    least, greatest = torch.aminmax(frames.flatten(1), dim=1)
    shape = (-1, 1, 1, 1)
    return (frames - least.view(shape)) / (greatest - least).clamp_min(1e-8).view(shape)
