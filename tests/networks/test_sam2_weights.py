"""Published weights in E3SAM2's parts: SAM2's, against the sam2 package's own network; E3SAM2's authors'."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from echoplan.errors import EchoPlanError
from echoplan.networks import build_network
from echoplan.networks.e3sam2.prompts import Prompts
from echoplan.networks.e3sam2.sam2_parts import VARIANTS, Variant, build_trunk, run_block
from echoplan.networks.e3sam2.settings import E3SAM2Settings
from echoplan.networks.settings import setting_kinds
from echoplan.networks.weights import SOURCES, find_weights
from echoplan.training.methods.e3sam2 import RELEASED as released_settings

sys.path.insert(0, str(Path(__file__).parent))

from published_networks import CONFIGURATIONS, authors_state, package_network

SIZE, FRAMES = 96, 10
POINT = (41.0, 30.0)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The package's tiny network with random weights, their file, and plain SAM2 and E3SAM2 with these weights."""
    torch.manual_seed(0)
    reference = package_network("tiny", size=SIZE).eval()
    for parameter in reference.parameters():  # embeddings of positions begin at zero, which would hide mistakes
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    # An object in every frame, as far as SAM2's gate is concerned, which is off here.
    torch.nn.init.constant_(reference.sam_mask_decoder.pred_obj_score_head.layers[-1].bias, 30.0)
    file = tmp_path_factory.mktemp("weights") / "sam2.1_hiera_tiny.pt"
    torch.save({"model": reference.state_dict()}, file)
    build = {"size": (SIZE, SIZE), "pretrained": file}
    return SimpleNamespace(
        reference=reference,
        file=file,
        plain=build_network("sam2", **build).eval(),
        ours=build_network("e3sam2", **build, adapter_place="after", multimask="always", object_score=True).eval(),
    )


def test_the_1024_pixel_network_has_the_same_keys_and_shapes(both: SimpleNamespace) -> None:
    with torch.device("meta"):
        small = build_network("sam2", variant="small", size=(256, 256))
    published = package_network("small").state_dict()
    from echoplan.networks.e3sam2.weights import _OURS, _UNUSED, _renamed

    renamed = {_renamed(key, ()): value.shape for key, value in published.items() if not key.startswith(_UNUSED)}
    own = {key: value.shape for key, value in small.state_dict().items() if not key.startswith(_OURS)}
    assert renamed == own
    assert set(CONFIGURATIONS) == set(VARIANTS)


@torch.inference_mode()
def test_image_features_are_the_packages_at_256_pixels(both: SimpleNamespace) -> None:
    """With the adapters' gates at zero; SAM2's trunk and neck take any size."""
    frames = torch.randn(1, 1, 256, 256)
    expected = both.reference.forward_image(frames.expand(-1, 3, -1, -1))["backbone_fpn"]
    maps, entropies = both.ours.encoder.stages(frames, with_entropies=True)
    features = both.ours.encoder.pyramid(maps, *both.ours.decoder.projections)
    assert [each.shape for each in entropies] == [(1, 4096), (1, 1024), (1, 256), (1, 64)]
    for given, wanted in zip((features.fine, features.middle, features.top), expected, strict=True):
        torch.testing.assert_close(given, wanted, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("size", [64, 256])
def test_blocks_of_the_trunk_are_the_packages_without_its_padding(size: int) -> None:
    torch.manual_seed(0)
    trunk = build_trunk(Variant(16, 1, (1, 1, 2, 2), (0, 0, 0)), "sam2", size)
    for parameter in trunk.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    tokens = trunk.patch_embed(torch.randn(2, 3, size, size))
    for block in trunk.blocks:
        expected = block(tokens)
        torch.testing.assert_close(run_block(block, tokens), expected, atol=1e-5, rtol=1e-5)
        tokens = expected
    # Windows of 14 and 7 tokens do not divide grids of powers of two.
    assert [block.window_bias is not None for block in trunk.blocks] == [False, False, False, True, True, True]
    assert all(block.window_bias is None for block in build_trunk(VARIANTS["tiny"], "light", 256).blocks)


@torch.inference_mode()
def test_tracking_from_a_point_gives_what_the_packages_video_predictor_gives(both: SimpleNamespace) -> None:
    """Plain SAM2 with the first frame and the last six in memory, forwards through a whole clip."""
    clip = torch.randn(FRAMES, 1, SIZE, SIZE)
    state = package_state(both.reference, clip)
    both.reference.add_new_points_or_box(state, 0, 1, points=torch.tensor([POINT]), labels=torch.tensor([1]))
    expected = {index: logits[0] for index, _, logits in both.reference.propagate_in_video(state)}
    prompts = Prompts.given(torch.tensor([POINT]), [0])
    given = dict(both.plain.stream(clip, prompts))
    assert list(given) == list(range(FRAMES))
    assert max(float(logits.abs().max()) for logits in given.values()) < 1000  # the gate was open
    for index, logits in given.items():
        torch.testing.assert_close(logits, expected[index], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(given[0], expected[0], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_tracking_from_a_box_is_the_packages_where_a_box_leaves_no_doubt(both: SimpleNamespace) -> None:
    clip, box = torch.randn(4, 1, SIZE, SIZE), torch.tensor([[20.0, 14.0, 70.0, 61.0]])
    state = package_state(both.reference, clip)
    both.reference.add_new_points_or_box(state, 0, 1, box=box[0])
    expected = {index: logits[0] for index, _, logits in both.reference.propagate_in_video(state)}
    prompts = Prompts.given_boxes(box, [0])
    sure = build_network("sam2", size=(SIZE, SIZE), pretrained=both.file, multimask="sam2").eval()
    for index, logits in sure.stream(clip, prompts):
        torch.testing.assert_close(logits, expected[index], atol=1e-4, rtol=1e-4)
    # The best of three masks is another one.
    assert not torch.allclose(dict(both.plain.stream(clip, prompts))[0], expected[0], atol=1e-2)


@torch.inference_mode()
def test_tracking_from_a_mask_is_the_packages(both: SimpleNamespace) -> None:
    """The mask is the answer in its own frame."""
    clip, mask = torch.randn(4, 1, SIZE, SIZE), torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    mask[0, 20:61, 31:70] = True
    state = package_state(both.reference, clip)
    both.reference.add_new_mask(state, 0, 1, mask[0])
    expected = {index: logits[0] for index, _, logits in both.reference.propagate_in_video(state)}
    given = dict(both.plain.stream(clip, Prompts.given_masks(mask, [0])))
    for index, logits in given.items():
        torch.testing.assert_close(logits, expected[index], atol=2e-5, rtol=1e-4)
    assert ((given[0] > 0) == mask).float().mean() > 0.98
    other = mask.roll(9, dims=2)
    assert not torch.allclose(dict(both.plain.stream(clip, Prompts.given_masks(other, [0])))[1], expected[1], atol=2e-4)


def package_state(reference: Any, clip: torch.Tensor) -> dict[str, Any]:
    """What the predictor's `init_state` makes of a folder of frames, for frames in memory."""
    import sam2.sam2_video_predictor as module

    original = module.load_video_frames
    module.load_video_frames = lambda **_: (clip.expand(-1, 3, -1, -1), *clip.shape[-2:])
    try:
        return reference.init_state("frames in memory")
    finally:
        module.load_video_frames = original


def test_a_wrong_file_says_what_is_wrong(both: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(EchoPlanError, match=r"lack encoder\.trunk\.blocks\.12\..* more"):
        build_network("sam2", variant="small", size=(SIZE, SIZE), pretrained=both.file)
    state = both.reference.state_dict()
    torch.save({"model": state | {"another.weight": torch.zeros(1)}}, tmp_path / "more.pt")
    with pytest.raises(EchoPlanError, match=r"have besides another\.weight"):
        build_network("e3sam2", size=(SIZE, SIZE), pretrained=tmp_path / "more.pt")


def test_weights_of_sam_2_0_have_pointers_without_an_age(both: SimpleNamespace, tmp_path: Path) -> None:
    newer = ("obj_ptr_tpos_proj.", "no_obj_embed_spatial")
    state = {key: value for key, value in both.reference.state_dict().items() if not key.startswith(newer)}
    torch.save({"model": state}, tmp_path / "sam2_hiera_tiny.pt")
    build = {"size": (SIZE, SIZE), "pretrained": tmp_path}
    older = build_network("sam2", **build, sam2_version="2.0").state_dict()
    for key, value in both.plain.state_dict().items():
        if not key.startswith("prompting.locator"):
            assert torch.equal(older[key], torch.zeros_like(value) if "pointer_age" in key else value), key
    with pytest.raises(EchoPlanError, match=r"folder has no weights 'sam2\.1_hiera_tiny'"):
        build_network("sam2", **build)
    build_network("e3sam2", **build)  # finds SAM 2.0's by itself


RELEASED = {name: value for name, value in released_settings.items() if name in setting_kinds(E3SAM2Settings)}


def test_a_checkpoint_of_the_authors_fits_strictly(tmp_path: Path) -> None:
    state, file = authors_state(), tmp_path / "best_camus_semi.pth"
    assert len(state) == 580
    torch.save(state, file, _use_new_zipfile_serialization=False)  # as they saved it
    build = {"size": (SIZE, SIZE), "variant": "small", **RELEASED}
    found = build_network("e3sam2", pretrained=file, **build).state_dict()
    kept = sum(value.numel() for name, value in found.items() if not name.startswith(("prompting.lo", "prompting.sh")))
    assert kept == sum(value.numel() for value in state.values())
    attention = state["image_encoder.trunk.blocks.3.glf.global_branch.key.weight"]
    assert torch.equal(found["encoder.adapters.1.attention.query_key_value.weight"][192:384], attention)
    assert torch.equal(found["edges.coarse.down.0.weight"], state["edge_encoder.sobel_y3.0.weight"])
    del state["edge_encoder.lastconv.bias"]
    torch.save(state | {"surplus": torch.zeros(1)}, file)
    with pytest.raises(EchoPlanError, match=r"lack edges\.last\.bias; they have besides surplus"):
        build_network("e3sam2", pretrained=file, **build)
    with pytest.raises(EchoPlanError, match="do not fit"):
        build_network("e3sam2", pretrained=file, size=(SIZE, SIZE), variant="small")


def test_light_windows_take_the_same_weights(both: SimpleNamespace) -> None:
    light = build_network("e3sam2", size=(SIZE, SIZE), pretrained=both.file, windows="light")
    own = both.plain.state_dict()
    for key, value in light.state_dict().items():
        if not key.startswith(("encoder.adapters", "edges", "prompting.locator", "prompting.later")):
            assert torch.equal(value, own[key]), key


def test_published_weights_are_checked_by_digest_or_placed_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    asked: list[str] = []

    def fetch(url: str, target: str, *, hash_prefix: str, progress: bool) -> None:
        asked.append(hash_prefix)
        Path(target).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    assert find_weights("sam2.1_hiera_tiny", environment={}) == tmp_path / "checkpoints" / "sam2.1_hiera_tiny.pt"
    assert asked == [SOURCES["sam2.1_hiera_tiny"].sha256]
    assert len(asked[0]) == 64
    assert "unconfirmed" in caplog.text
    (tmp_path / "sam2.1_hiera_base_plus.pt").touch()
    placed = find_weights("sam2.1_hiera_base_plus", environment={"ECHOPLAN_WEIGHTS": str(tmp_path)})
    assert placed == tmp_path / "sam2.1_hiera_base_plus.pt"


def test_without_weights_and_network_the_error_says_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.delenv("ECHOPLAN_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(EchoPlanError, match=r"no route to host.*sam2_hiera_tiny\.pt.*pretrained=false"):
        build_network("e3sam2", size=(SIZE, SIZE), pretrained=True)


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sam2.modeling.backbones.hieradet", None)
    with pytest.raises(EchoPlanError, match=r"sam2 cannot be imported.*SAM2_BUILD_CUDA=0 pip install"):
        build_network("sam2", size=(SIZE, SIZE))


def test_hydra_and_logging_stay_as_they_were() -> None:
    code = """
import logging, sys
before = logging.getLogger().handlers[:], logging.getLogger().level, sys.argv[:]
from echoplan.networks.e3sam2.sam2_parts import sam2_module
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
sam2_module("modeling.memory_encoder")
assert not GlobalHydra.instance().is_initialized()
initialize_config_module("sam2", version_base="1.2")
sam2_module("modeling.memory_attention")
assert GlobalHydra.instance().is_initialized()
assert (logging.getLogger().handlers, logging.getLogger().level, sys.argv) == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
