"""SAM: equal to its package where it is SAM, and boxed by its locator where nobody gives a box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything.modeling import ImageEncoderViT, Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor, nn

from echoplan.errors import EchoPlanError
from echoplan.networks import ClipOutput, build_network
from echoplan.networks.complexity import describe_learning, learning_parts
from echoplan.networks.sam.locator import found_boxes, largest_region_box, rescale_boxes
from echoplan.networks.sam.model import SAM
from echoplan.networks.sam.parts import build_mask_decoder, build_prompt_encoder, vit_settings
from echoplan.networks.sam.settings import VARIANTS
from echoplan.networks.weights import no_downloads

pytestmark = pytest.mark.usefixtures("tiny_sam")
BOX = torch.tensor([[300.0, 180.0, 700.0, 905.0]])


def reference(seed: int = 0) -> Sam:
    """The package's own model; its position tables, zero at first, hold something."""
    torch.manual_seed(seed)
    sam = Sam(ImageEncoderViT(**vit_settings(VARIANTS["vit_b"])), build_prompt_encoder(1024), build_mask_decoder())
    for name, parameter in sam.named_parameters():
        if "pos" in name:
            nn.init.normal_(parameter, std=0.3)
    return sam.eval()


def with_weights_of(sam: Sam, folder: Path, **settings: object) -> SAM:
    torch.save(sam.state_dict(), folder / "weights.pth")
    return build_network("sam", pretrained=folder / "weights.pth", **{"size": (112, 112), **settings}).eval()


def picture(height: int, width: int) -> Tensor:
    """uint8 (H, W) from black to white."""
    rows, columns = np.mgrid[:height, :width]
    waves = np.sin(rows / height * 9) * np.cos(columns / width * 7)
    return torch.from_numpy(np.rint((waves - waves.min()) / np.ptp(waves) * 255).astype(np.uint8))


def standardised(image: Tensor) -> Tensor:
    """The picture as a clip of one frame, as EchoPlan gives it to networks."""
    return ((image.float() - 91.3) / 37.7)[None, None, None]


def masks_of(sam: Sam, images: Tensor, box: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The package's features and mask logits for an image (3, h, w) with a box in its pixels."""
    features = sam.image_encoder(sam.preprocess(images)[None])
    sparse, dense = sam.prompt_encoder(points=None, boxes=box, masks=None)
    low, _ = sam.mask_decoder(features, sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=False)
    return features, sam.postprocess_masks(low, images.shape[-2:], size)


@pytest.mark.parametrize("size", [(1024, 1024), (96, 112)])
@torch.inference_mode()
def test_features_and_masks_are_the_packages_own(size: tuple[int, int], tmp_path: Path) -> None:
    sam = reference()
    network = with_weights_of(sam, tmp_path, size=size)
    image = picture(*size)
    clip = standardised(image)
    inner = ResizeLongestSide.get_preprocess_shape(*size, 1024)
    enlarged = nn.functional.interpolate(image.float().expand(1, 3, -1, -1), inner, mode="bilinear", antialias=True)[0]
    box = rescale_boxes(BOX, old=inner, new=size)
    features, mask = masks_of(sam, enlarged, BOX, size)
    torch.testing.assert_close(network.image_encoder(network.prepare(clip[0])), features, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network(clip, box[None])[0], mask, atol=1e-5, rtol=1e-5)
    assert mask.std() > 1e-3


@torch.inference_mode()
def test_a_smaller_grid_has_interpolated_positions(tmp_path: Path) -> None:
    sam = reference()
    network = with_weights_of(sam, tmp_path, encoder_size=160)
    other = ImageEncoderViT(**{**vit_settings(VARIANTS["vit_b"]), "img_size": 160}).eval()
    for block, own in zip(other.blocks, sam.image_encoder.blocks, strict=True):
        block.attn.rel_pos_h, block.attn.rel_pos_w = own.attn.rel_pos_h, own.attn.rel_pos_w
    grid = nn.functional.interpolate(sam.image_encoder.pos_embed.permute(0, 3, 1, 2), (10, 10), mode="bicubic")
    other.pos_embed = nn.Parameter(grid.permute(0, 2, 3, 1))
    other.load_state_dict({k: v for k, v in sam.image_encoder.state_dict().items() if "pos" not in k}, strict=False)
    images = network.prepare(standardised(picture(112, 112))[0])
    assert images.shape == (1, 3, 160, 160)
    torch.testing.assert_close(network.image_encoder(images), other(images), atol=1e-5, rtol=1e-5)


def test_gradients_are_the_packages_own() -> None:
    torch.manual_seed(0)
    network = build_network("sam", size=(64, 64), encoder_size=1024, trainable="all")
    sam = reference()
    network.image_encoder.load_state_dict(sam.image_encoder.state_dict())
    images = torch.randn(1, 3, 1024, 1024)
    for encoder in (network.image_encoder, sam.image_encoder):
        encoder(images).square().mean().backward()
    for (name, ours), theirs in zip(
        network.image_encoder.named_parameters(), sam.image_encoder.parameters(), strict=True
    ):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-3, msg=name)


@torch.inference_mode()
def test_pixels_are_what_each_model_was_trained_on() -> None:
    image = picture(64, 64)
    medsam = build_network("sam", size=(64, 64), encoder_size=64, model="medsam")
    torch.testing.assert_close(medsam.prepare(standardised(image)[0])[0, 1], image / 255, atol=1e-5, rtol=0)
    sam = build_network("sam", size=(64, 64), encoder_size=64)
    torch.testing.assert_close(sam.prepare(standardised(image)[0])[0, 0], (image - 123.675) / 58.395)
    wide = sam.prepare(standardised(picture(32, 64))[0])[0]
    assert wide.shape == (3, 64, 64) and (wide[:, 32:] == 0).all() and (wide[:, :32] != 0).any()
    assert sam.prepare(torch.full((1, 1, 64, 64), 3.0)).isfinite().all()  # a frame of one value


@torch.inference_mode()
def test_the_locator_boxes_what_nobody_boxed() -> None:
    torch.manual_seed(0)
    network = build_network("sam", size=(48, 64), encoder_size=64).eval()
    clip = torch.randn(2, 5, 1, 48, 64)
    own = found_boxes(network.locator(clip), size=(48, 64), margin=0.05)
    whole = network(clip)
    torch.testing.assert_close(whole, network(clip, own))
    given = own.clone()
    given[0, 1] = torch.tensor([5.0, 6, 20, 30])
    told = network(clip, given.masked_fill(given == own, torch.nan))
    torch.testing.assert_close(told, network(clip, given))
    changed = (told != whole).flatten(2).any(dim=2)
    assert changed.tolist() == [[False, True, False, False, False], [False] * 5]
    # Ten frames go through in two runs of the encoder; every one is by itself.
    torch.testing.assert_close(network(clip[1:, 3:4]), whole[1:, 3:4], atol=1e-5, rtol=1e-5)


def test_a_found_box_is_the_largest_regions_with_its_margin() -> None:
    logits = torch.full((1, 3, 1, 128, 128), -5.0)
    logits[0, 0, 0, 32:64, 16:80] = 5.0
    logits[0, 0, 0, 100:104, 100:104] = 5.0  # smaller, and apart
    logits[0, 1, 0, :, :20] = 5.0  # reaches three borders
    boxes = found_boxes(logits, size=(256, 128), margin=0.0)
    torch.testing.assert_close(boxes[0, 0], torch.tensor([16.0, 64.5, 79.0, 126.5]))
    wider = found_boxes(logits, size=(256, 128), margin=0.1)
    torch.testing.assert_close(wider[0, 0] - boxes[0, 0], torch.tensor([-6.3, -6.2, 6.3, 6.2]))
    assert wider[0, 1].tolist() == [0, 0, pytest.approx(19 * 1.1), 255]
    assert wider[0, 2].tolist() == [0, 0, 127, 255]  # nothing found: the whole frame
    assert found_boxes(logits.to("meta"), size=(256, 128), margin=0.1).is_meta
    assert largest_region_box(np.zeros((4, 4), bool)) is None


def test_the_locators_gradients_are_apart_from_sams() -> None:
    torch.manual_seed(0)
    network = build_network("sam", size=(64, 64), encoder_size=64, trainable="all")
    output = network(torch.randn(2, 1, 1, 64, 64))
    assert isinstance(output, ClipOutput) and output.logits.shape == (2, 1, 1, 64, 64)

    def learning() -> set[str]:
        return {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None}

    output.auxiliary["locator"].sum().backward()
    assert learning() == {"locator"}
    network.zero_grad(set_to_none=True)
    network(torch.randn(2, 1, 1, 64, 64)).logits.square().sum().backward()
    assert learning() == {"image_encoder", "prompt_encoder", "mask_decoder"}
    reached = {name for name, p in network.named_parameters() if p.grad is not None or name.startswith("locator")}
    assert reached == {name for name, p in network.named_parameters() if p.requires_grad}


def test_what_learns_is_counted() -> None:
    counts = {
        trainable: learning_parts(build_network("sam", size=(64, 64), encoder_size=64, trainable=trainable))
        for trainable in ("locator", "decoder", "all_but_prompt_encoder", "all")
    }
    parts = {name: {part for part, (some, _) in count.items() if some} for name, count in counts.items()}
    assert parts["locator"] == {"locator"}
    assert parts["decoder"] == {"mask_decoder", "locator"}
    assert parts["all_but_prompt_encoder"] == {"mask_decoder", "locator", "image_encoder"}
    assert parts["all"] == {"mask_decoder", "locator", "image_encoder", "prompt_encoder"}
    encoder = counts["decoder"]["image_encoder"]
    assert encoder[0] == 0 and counts["all"]["image_encoder"] == (encoder[1], encoder[1])
    line = describe_learning(build_network("sam", size=(64, 64), encoder_size=64))
    some, total = (sum(count[place] for count in counts["decoder"].values()) for place in (0, 1))
    assert f"{some:,} of {total:,}, {total - some:,} frozen" in line and f"image_encoder 0 of {encoder[1]:,}" in line


def test_weights_that_cannot_be_had_say_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ECHOPLAN_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with no_downloads(), pytest.raises(EchoPlanError, match=r"no weights.*medsam_vit_b\.pth.*ECHOPLAN_WEIGHTS"):
        build_network("sam", size=(64, 64), encoder_size=64, model="medsam", pretrained=True)
    sam = reference()
    state = sam.state_dict()
    state.pop("mask_decoder.iou_token.weight")
    torch.save(state, tmp_path / "sam_vit_b.pth")
    with pytest.raises(EchoPlanError, match=r"lack mask_decoder\.iou_token\.weight"):
        build_network("sam", size=(64, 64), pretrained=tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 3}, "one object"),
        ({"model": "sam3"}, "model cannot be 'sam3'"),
        ({"encoder": "vit_t"}, "encoder of sam cannot be 'vit_t'"),
        ({"encoder_size": 100}, "multiple of 16"),
        ({"trainable": "neck"}, "trainable cannot be 'neck'"),
        ({"boxes": "drawn"}, "boxes cannot be 'drawn'"),
        ({"box_margin": -0.1}, "box_margin"),
    ],
)
def test_faulty_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(EchoPlanError, match=message):
        build_network("sam", **{"size": (64, 64), "encoder_size": 64, **settings})


def test_boxes_as_rectangles_are_scaled_as_the_package_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV's boundingRect of columns 10 to 29 and rows 5 to 24 is (10, 5, 20, 20)."""
    told: list[Tensor] = []
    network = build_network("sam", size=(56, 112), encoder_size=64, boxes="bounding_rect").eval()
    own = network.prompt_encoder.forward
    monkeypatch.setattr(network.prompt_encoder, "forward", lambda **given: told.append(given["boxes"]) or own(**given))
    network(torch.randn(1, 1, 1, 56, 112), torch.tensor([[[10.0, 5, 29, 24]]]))
    expected = ResizeLongestSide(64).apply_boxes(np.array([[10.0, 5, 30, 25]]), (56, 112))
    np.testing.assert_allclose(told[0].flatten(), expected[0], rtol=1e-6)


def test_boxes_must_be_one_a_frame() -> None:
    network = build_network("sam", size=(64, 64), encoder_size=64)
    with pytest.raises(EchoPlanError, match="one a frame"):
        network(torch.randn(1, 2, 1, 64, 64), torch.zeros(1, 4))
