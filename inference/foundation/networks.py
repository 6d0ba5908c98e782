"""Foundation models as they were published, told by labels where the structure is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from echoplan.device import mixed_precision
from echoplan.errors import EchoPlanError
from echoplan.networks import build_network
from echoplan.networks.e3sam2.prompts import Prompts
from echoplan.networks.sam.settings import BOXES, LITE_SIZE, MODELS, NATIVE_SIZE
from echoplan.networks.weights import weights_options

from ...training.losses import reduce_labels
from ...training.prompts import BOX_KINDS, LABEL_KINDS, boxes_of_frames, case_draw, prompt_from_label

_BATCH = 4  # frames that SAM sees at once
_RGB_MEAN, _RGB_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of SAM2's training images, ImageNet's
_WHITE = 255.0


@dataclass(frozen=True)
class FoundationModel:
    """Which network, and what it is told.

    Attributes:
        model: "sam", "medsam", "lite_medsam" or "sam2".
        prompt: what it is told of the labels: "box" or "jittered_box" of every labelled frame (SAM, MedSAM), or a
            "point", "jittered", "box", "jittered_box" or "mask" of the first one (SAM2).
        variant: of its trunk; empty is the usual one.
        size: the side that images are resized to; None is the model's own, 1024 or LiteMedSAM's 256.
        shrink: the side of the square that frames are shrunk to before that, as Chao et al. did with all data (112); 0:
            they are not.
        boxes: how SAM and MedSAM are told of a box, see `SAMSettings`.
        weights: their file; None looks in the usual places.
    """

    model: str
    prompt: str = "box"
    variant: str = ""
    size: int | None = None
    weights: Path | None = None
    shrink: int = 0
    boxes: str = BOXES[0]

    def __post_init__(self) -> None:
        if self.model not in FOUNDATION_MODELS:
            raise EchoPlanError(
                f"there is no model {self.model!r}", remedy=f"choose one of {', '.join(FOUNDATION_MODELS)}"
            )
        kinds = LABEL_KINDS if self.model == "sam2" else BOX_KINDS
        for setting, value, choices in (
            ("prompt", self.prompt, kinds),
            ("variant", self.variant, ("", *FOUNDATION_MODELS[self.model])),
            ("boxes", self.boxes, BOXES[:1] if self.model == "sam2" else BOXES),
        ):
            if value not in choices:
                known = ", ".join(filter(None, choices))
                raise EchoPlanError(f"{self.model} takes no {setting} {value!r}", remedy=f"choose one of {known}")

    @property
    def side(self) -> int:
        """The side that images are resized to."""
        return self.size or self._own_side

    @property
    def _own_side(self) -> int:
        return LITE_SIZE if self.model == "lite_medsam" else NATIVE_SIZE

    @property
    def name(self) -> str:
        """<model>_<prompt>, with what is not usual: its results' folder."""
        size = "" if self.side == self._own_side else str(self.side)
        shrunk = f"from{self.shrink}" if self.shrink else ""
        boxes = "" if self.boxes == BOXES[0] else self.boxes
        return "_".join(part for part in (self.model, self.variant, size, shrunk, self.prompt, boxes) if part)

    def load(self, device: torch.device | str = "cpu") -> nn.Module:
        """The network with its weights, in evaluation mode.

        Raises:
            EchoPlanError: a size it cannot take, or weights that cannot be had.
        """
        variant, pretrained = self.variant or FOUNDATION_MODELS[self.model][0], self.weights or True
        settings: dict[str, Any] = {
            "model": self.model,
            "encoder": variant,
            "encoder_size": self.side,
            "boxes": self.boxes,
        }
        if self.model == "sam2":
            settings = {"variant": variant, "multimask": "sam2"}
        name = "sam2" if self.model == "sam2" else "sam"
        with weights_options("--weights FILE"):
            network = build_network(name, size=(self.side, self.side), pretrained=pretrained, **settings)
        return network.to(device).eval()

    @torch.inference_mode()
    def segment(
        self, network: Any, frames: NDArray[np.uint8], masks: Mapping[int, NDArray[np.bool_]], case: str
    ) -> NDArray:
        """The structure in a clip, as the labels tell it.

        SAM and MedSAM get a box in every labelled frame that shows the structure (Chao et al.'s protocol). SAM2 is told
        of the first one, which it follows from there; it sees the frames from the first labelled one to the last:
        enough to be judged, and far fewer than there are in a clip of many beats.

        Args:
            network: of `load`.
            frames: (T, H, W).
            masks: labelled frame -> (H, W), the structure.
            case: its name fixes the chance in what is jittered.

        Returns:
            (T, H, W) bool. Frames that the labels say nothing of stay empty, also where no structure is to be told of.
        """
        with mixed_precision(next(network.parameters()).device):
            return self._shrunk_answer(network, frames, masks, case)

    def _shrunk_answer(
        self, network: Any, frames: NDArray[np.uint8], masks: Mapping[int, NDArray[np.bool_]], case: str
    ) -> NDArray:
        if not self.shrink:
            return self._answer(network, frames, masks, case)
        size = self.shrink, self.shrink
        grey = torch.from_numpy(frames)[:, None].float()
        small = F.interpolate(grey, size, mode="bilinear", antialias=True)[:, 0].round().byte().numpy()
        reduced = {frame: reduce_labels(torch.from_numpy(mask), size).numpy() for frame, mask in masks.items()}
        found = torch.from_numpy(self._answer(network, small, reduced, case))[:, None].float()
        return (F.interpolate(found, frames.shape[1:], mode="bilinear")[:, 0] >= 0.5).numpy()

    def _answer(
        self, network: Any, frames: NDArray[np.uint8], masks: Mapping[int, NDArray[np.bool_]], case: str
    ) -> NDArray:
        found = np.zeros(frames.shape, bool)
        shown = [frame for frame in sorted(masks) if masks[frame].any()]
        if not shown:
            return found
        if self.model != "sam2":
            boxes = boxes_of_frames(masks, len(frames), kind=self.prompt, case=case)
            device = next(network.parameters()).device
            for start in range(0, len(shown), _BATCH):
                some = shown[start : start + _BATCH]
                clip = torch.from_numpy(frames[some])[None, :, None].to(device, torch.float32)
                logits = network(clip, boxes[some][None].to(device))
                found[some] = (logits[0, :, 0] > 0).cpu().numpy()
            return found
        first, last = min(masks), max(masks)
        told = prompt_from_label(masks[shown[0]], kind=self.prompt, frame=shown[0] - first, draw=case_draw(case))
        seen = EnlargedFrames(frames[first : last + 1], network.size)
        for index, logits in network.stream(seen, rescale_prompts(told, frames.shape[1:], network.size)):
            native = F.interpolate(logits[None].float(), size=frames.shape[1:], mode="bilinear")
            found[first + index] = (native[0, 0] > 0).cpu().numpy()
        return found


# Model -> the sizes of its trunk, the usual one first.
FOUNDATION_MODELS = {**MODELS, "sam2": ("tiny", "small", "base_plus", "large")}


class EnlargedFrames:
    """What a `StreamingNetwork` reads of a clip, enlarged and coloured as SAM2 wants it only when it is asked for.

    Args:
        frames: (T, H, W).
        size: side of the square that they are stretched to, as SAM2 does.
    """

    def __init__(self, frames: NDArray[np.uint8], size: int) -> None:
        self.frames = frames
        self.shape = (len(frames), 3, size, size)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, indices: slice | list[int]) -> Tensor:
        """``(n, 3, size, size)``, standardised by ImageNet's mean and deviation."""
        grey = torch.from_numpy(self.frames[indices])[:, None].float() / _WHITE
        resized = F.interpolate(grey, self.shape[2:], mode="bilinear", antialias=True)
        mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (_RGB_MEAN, _RGB_DEVIATION))
        return (resized - mean) / deviation


def rescale_prompts(prompts: Prompts, old: tuple[int, int], size: int) -> Prompts:
    """Prompts in pixel centres of images (H, W), when these are resized to `size` x `size`."""
    ratio = torch.tensor([size / old[1], size / old[0]])
    masks = None
    if prompts.masks is not None:
        resized = F.interpolate(prompts.masks[:, None].float(), (size, size), mode="bilinear", antialias=True)
        masks = resized[:, 0] >= 0.5
    return replace(
        prompts,
        points=(prompts.points + 0.5) * ratio - 0.5,
        boxes=None if prompts.boxes is None else (prompts.boxes + 0.5) * ratio.repeat(2) - 0.5,
        masks=masks,
    )
