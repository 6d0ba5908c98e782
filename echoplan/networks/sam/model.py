"""SAM put together with the locator that boxes what nobody boxed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.errors import EchoPlanError
from echoplan.networks.interface import ClipOutput
from echoplan.networks.sam.locator import Locator, found_boxes, rescale_as_rectangles, rescale_boxes
from echoplan.networks.sam.parts import build_image_encoder, build_mask_decoder, build_prompt_encoder, decode_mask
from echoplan.networks.sam.settings import LEARNING_PARTS, SAMSettings
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

    # Says what asks for a graph of the network, see `inference.deployment`.
    why_no_graph = (
        "SAM is told the box of the largest connected region that its locator finds, and no operator there tells "
        "connected regions apart"
    )

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

    def train(self, mode: bool = True) -> SAM:
        """An image encoder that does not learn keeps the statistics of its batch normalisation, too."""
        super().train(mode)
        if not any(weight.requires_grad for weight in self.image_encoder.parameters()):
            self.image_encoder.eval()
        return self

    def forward(self, clip: Tensor, boxes: Tensor | None = None) -> Tensor | ClipOutput:
        """``(B, T, C, H, W)`` with C = 1 or 3 -> logits ``(B, T, 1, H, W)``, in training mode a `ClipOutput`.

        In training mode the auxiliary part holds "locator" ``(B, T, 1, 128, 128)``: the locator's logits.

        Args:
            clip: standardised frames.
            boxes: ``(B, T, 4)``, x0, y0, x1, y1 in pixel centres of the frames, as `training.prompts` makes them; NaN
                in frames without a box, which the locator boxes. None leaves all frames to it.

        Raises:
            EchoPlanError: the boxes are not one a frame.
        """
        if boxes is not None and boxes.shape != (*clip.shape[:2], 4):
            raise EchoPlanError(
                f"boxes are {tuple(boxes.shape)} where one a frame, {(*clip.shape[:2], 4)}, is expected",
                remedy="give x0, y0, x1, y1 for every frame of every clip, NaN where there is none",
            )
        if self.training:
            found = self.locator(clip)
            boxes = self._complete(boxes, clip, found)
            logits = self.segment(clip.flatten(0, 1), boxes.flatten(0, 1))
            return ClipOutput(logits.unflatten(0, clip.shape[:2]), {"locator": found})
        boxes = self._complete(boxes, clip)
        parts = zip(clip.flatten(0, 1).split(_CHUNK), boxes.flatten(0, 1).split(_CHUNK), strict=True)
        return torch.cat([self.segment(*part) for part in parts]).unflatten(0, clip.shape[:2])

    def segment(self, frames: Tensor, boxes: Tensor) -> Tensor:
        """Frames ``(N, C, H, W)`` with a box each, ``(N, 4)`` -> logits ``(N, 1, H, W)``."""
        size = frames.shape[-2:]
        inner = self._enlarged(size)
        features = self.image_encoder(self.prepare(frames))
        enlarge = rescale_boxes if self.box_kind == "centres" else rescale_as_rectangles
        told = enlarge(boxes, old=size, new=inner)
        masks = decode_mask(self.mask_decoder, self.prompt_encoder, features, told).float()
        whole = F.interpolate(masks, (self.encoder_size,) * 2, mode="bilinear", align_corners=False)
        return F.interpolate(whole[..., : inner[0], : inner[1]], size, mode="bilinear", align_corners=False)

    def prepare(self, frames: Tensor) -> Tensor:
        """Standardised frames ``(N, C, H, W)`` -> what the image encoder was trained on, ``(N, 3, S, S)``."""
        side, inner = self.encoder_size, self._enlarged(frames.shape[-2:])
        frames = frames.float()
        if self.model != "sam":
            way = "bicubic" if self.model == "medsam" else "bilinear"
            images = _unit_range(F.interpolate(frames, inner, mode=way, align_corners=False, antialias=True))
            images = images.expand(-1, 3, -1, -1)
        else:
            resized = F.interpolate(
                _unit_range(frames) * _WHITE, inner, mode="bilinear", align_corners=False, antialias=True
            )
            images = (resized - self.pixel_mean) / self.pixel_deviation
        return F.pad(images, (0, side - inner[1], 0, side - inner[0]))

    def _enlarged(self, size: Sequence[int]) -> tuple[int, int]:
        """(H, W) of frames of `size` when their longest side is the encoder's."""
        ratio = self.encoder_size / max(size)
        return int(size[0] * ratio + 0.5), int(size[1] * ratio + 0.5)

    def _complete(self, boxes: Tensor | None, clip: Tensor, found: Tensor | None = None) -> Tensor:
        """The boxes, with the locator's where there is none; `found` is its answer where that is known."""
        if boxes is not None and not boxes.is_meta and not bool(boxes.isnan().any()):
            return boxes
        found = self.locator(clip) if found is None else found
        own = found_boxes(found, size=clip.shape[-2:], margin=self.box_margin)
        return own if boxes is None else torch.where(boxes.isnan(), own, boxes.to(own))


def _unit_range(frames: Tensor) -> Tensor:
    """Each frame's values as 0 (its least) to 1 (its greatest); a frame of one value is all zeros."""
    least, greatest = torch.aminmax(frames.flatten(1), dim=1)
    shape = (-1, 1, 1, 1)
    return (frames - least.view(shape)) / (greatest - least).clamp_min(1e-8).view(shape)
