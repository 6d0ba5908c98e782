"""The settings of SAM, MedSAM and LiteMedSAM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from echoplan.errors import EchoPlanError
from echoplan.networks.settings import NetworkSettings, check_choice, check_range

NATIVE_SIZE = 1024  # side of the images that SAM was trained on; its position tables have this size
LITE_SIZE = 256  # side of the images that LiteMedSAM was trained on
PATCH = 16
BOXES = ("centres", "bounding_rect")
LEARNING_PARTS = ("locator", "decoder", "all_but_prompt_encoder", "all")  # each with those before it


@dataclass(frozen=True)
class Variant:
    """One size of the image encoder.

    Attributes:
        width: channels of a token.
        depth: transformer blocks.
        heads: attention heads.
        global_blocks: the blocks that attend to the whole image; the others see windows of 14 x 14 tokens.
    """

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]


VARIANTS = {
    "vit_b": Variant(768, 12, 12, (2, 5, 8, 11)),
    "vit_l": Variant(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": Variant(1280, 32, 16, (7, 15, 23, 31)),
}
# Model -> the image encoders that weights are published of.
MODELS = {"sam": tuple(VARIANTS), "medsam": ("vit_b",), "lite_medsam": ("tiny_vit",)}


@dataclass(frozen=True)
class SAMSettings(NetworkSettings):
    """Of `SAM`.

    Attributes:
        model: "sam", "medsam" or "lite_medsam": whose weights, and so whose pixels.
        encoder: "vit_b" (the paper's), "vit_l" or "vit_h"; of LiteMedSAM "tiny_vit".
        encoder_size: the longest side that frames are brought to, a multiple of 16; 1024 is SAM's own and the paper's,
            256 LiteMedSAM's. Less is faster and not SAM as it was trained: position embeddings are interpolated.
        trainable: what learns: the "locator" alone, beside it the "decoder", "all_but_prompt_encoder" or "all"; "auto"
            is the decoder (and everything in a training that starts from random weights).
        boxes: what SAM is told of a box: "centres", from the centre of its first pixel to that of its last, or
            "bounding_rect", as OpenCV's boundingRect and SAM's ResizeLongestSide have it (x to x + w, scaled without
            the shift of half a pixel): Chao et al.'s way, whose far corner is one pixel of the frame further.
        box_margin: by which the locator's box is widened at each side, as a share of its width or height.
    """

    model: str = "sam"
    encoder: str = "vit_b"
    encoder_size: int = NATIVE_SIZE
    trainable: str = "auto"
    boxes: str = "centres"
    box_margin: float = 0.05

    def __post_init__(self) -> None:
        check_choice("model", self.model, MODELS)
        check_choice(f"encoder of {self.model}", self.encoder, MODELS[self.model])
        check_choice("boxes", self.boxes, BOXES)
        check_choice("trainable", self.trainable, (*LEARNING_PARTS, "auto"))
        least, most = 2 * PATCH, 4 * NATIVE_SIZE
        if not least <= self.encoder_size <= most or self.encoder_size % PATCH:
            raise EchoPlanError(
                f"encoder_size must be a multiple of {PATCH} from {least} to {most}, not {self.encoder_size}",
                remedy=f"choose {NATIVE_SIZE}, SAM's own, or {LITE_SIZE}, LiteMedSAM's",
            )
        check_range("box_margin", self.box_margin, 0, 10)

    @property
    def learning_part(self) -> str:
        """`trainable` with "auto" resolved."""
        return "decoder" if self.trainable == "auto" else self.trainable

    @property
    def weights_name(self) -> str:
        """By which `echoplan.networks.weights` knows the published weights."""
        return self.model if self.model == "lite_medsam" else f"{self.model}_{self.encoder}"


def enlarged_size(size: Sequence[int], side: int) -> tuple[int, int]:
    """(H, W) of frames of `size` when their longest side is `side`."""
    ratio = side / max(size)
    return int(size[0] * ratio + 0.5), int(size[1] * ratio + 0.5)
