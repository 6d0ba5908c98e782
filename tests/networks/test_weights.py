from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision

from echoplan.errors import EchoPlanError
from echoplan.networks import build_network
from echoplan.networks.resnet import ResNetBackbone
from echoplan.networks.weights import SOURCES, find_weights, load_weights

from ..real_data import REAL_DATA

SHARED = REAL_DATA / "weights" / "resnet50_imagenet_fp16.pth"


@pytest.fixture
def resnet18_file(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    network = torchvision.models.resnet18(weights=None)
    network.bn1.running_mean.normal_()
    torch.save(
        {key: v.half() if v.is_floating_point() else v for key, v in network.state_dict().items()},
        tmp_path / "resnet18_half.pth",
    )
    return tmp_path / "resnet18_half.pth"


@pytest.fixture
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def test_search_order(resnet18_file: Path, empty_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"ECHOPLAN_WEIGHTS": str(resnet18_file.parent)}
    assert find_weights("resnet18", path=resnet18_file, environment={}) == resnet18_file
    assert find_weights("resnet18", path=resnet18_file.parent, environment={}) == resnet18_file
    empty_hub.mkdir(parents=True)
    cached = empty_hub / SOURCES["resnet18"].file_name
    cached.write_bytes(b"weights")
    assert find_weights("resnet18", environment=environment) == resnet18_file
    with pytest.raises(EchoPlanError, match=r"SHA-256 begins with 9a129038, not with f37072fd.*remove the file"):
        find_weights("resnet18", environment={})
    monkeypatch.setitem(SOURCES, "resnet18", replace(SOURCES["resnet18"], sha256="9a129038"))
    assert find_weights("resnet18", environment={}) == cached
    # "resnet18" is no beginning of "resnet180", and an exact name goes before a longer one.
    (resnet18_file.parent / "resnet180.pth").touch()
    (resnet18_file.parent / "resnet18.pth").touch()
    assert find_weights("resnet18", environment=environment).name == "resnet18.pth"


def test_download_checks_the_digest_and_says_what_to_do(empty_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(url: str, target: str, *, hash_prefix: str, progress: bool) -> None:
        assert hash_prefix in url
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(EchoPlanError, match=r"no route to host.*ECHOPLAN_WEIGHTS"):
        find_weights("resnet34", environment={})
    with pytest.raises(EchoPlanError, match=r"resnet34-b627a593.pth"):
        find_weights("resnet34", environment={}, download=False)
    with pytest.raises(EchoPlanError, match=r"no weights 'another_network' were found in /nowhere"):
        find_weights("another_network", environment={"ECHOPLAN_WEIGHTS": "/nowhere"})
    with pytest.raises(EchoPlanError, match="no such file"):
        find_weights("resnet34", path="/nowhere/at/all.pth")

    def fetch(url: str, target: str, *, hash_prefix: str, progress: bool) -> None:
        Path(target).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    assert find_weights("resnet34", environment={}) == empty_hub / "resnet34-b627a593.pth"


def test_a_file_with_another_digest_is_refused(
    empty_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import echoplan.networks.weights as module

    (tmp_path / "published.pth").write_bytes(b"something else")
    source = module.WeightsSource((tmp_path / "published.pth").as_uri(), "0123abcd")
    monkeypatch.setitem(module.SOURCES, "resnet18", source)
    with pytest.raises(EchoPlanError, match="could not be downloaded"):
        find_weights("resnet18", environment={})
    assert not list(empty_hub.glob("*.pth"))


@pytest.mark.parametrize("input_range", ["standardised", "unit"])
def test_one_grey_channel_gives_what_grey_rgb_gives(resnet18_file: Path, input_range: str) -> None:
    grey = torch.rand(1, 1, 64, 64)
    reference = torchvision.models.resnet18(weights=None)
    reference.load_state_dict(torch.load(resnet18_file, weights_only=True))
    if input_range == "unit":
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        rgb = (grey - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    else:
        rgb = grey.expand(1, 3, 64, 64)
    ours = ResNetBackbone("resnet18", pretrained=resnet18_file, input_range=input_range).eval()
    with torch.no_grad():
        expected = reference.eval().bn1(reference.conv1(rgb))
        given = ours.bn1(ours.conv1(grey))
        inner = (..., slice(2, -2), slice(2, -2))  # zero padding means something else at the edge for "unit"
        torch.testing.assert_close(given[inner], expected[inner], atol=1e-4, rtol=1e-4)
        if input_range == "standardised":
            features = torch.nn.Sequential(*list(reference.children())[:-2])(rgb)
            torch.testing.assert_close(ours(grey)[-1], features, atol=1e-4, rtol=1e-4)
            assert [m.shape[1:] for m in ours(grey)] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]


def test_files_that_do_not_fit_say_which_keys(resnet18_file: Path, tmp_path: Path) -> None:
    with pytest.raises(EchoPlanError, match=r"lack layer1\.2\.conv1\.weight.* more"):
        ResNetBackbone("resnet34", pretrained=resnet18_file)
    with pytest.raises(
        EchoPlanError, match=r"layer1\.0\.conv1\.weight is \(64, 64, 3, 3\) instead of \(64, 64, 1, 1\)"
    ):
        ResNetBackbone("resnet50", pretrained=resnet18_file)
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(EchoPlanError, match="cannot be read"):
        ResNetBackbone("resnet18", pretrained=tmp_path / "text.pth")
    torch.save({"conv1.weight": "a word"}, tmp_path / "words.pth")
    with pytest.raises(EchoPlanError, match="no state dict"):
        ResNetBackbone("resnet18", pretrained=tmp_path / "words.pth")
    torch.save({"fc.weight": torch.zeros(2), "other": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(EchoPlanError, match=r"lack 'conv1\.weight'"):
        ResNetBackbone("resnet18", pretrained=tmp_path / "other.pth")


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"x": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(EchoPlanError, match="cannot be read"):
        load_weights(torch.nn.Linear(1, 1), tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_new_and_ignored_keys(tmp_path: Path) -> None:
    torch.save(
        {
            "state_dict": {
                f"module.{key}": torch.ones(shape)
                for key, shape in {"0.weight": (1, 1), "0.bias": (1,), "head.x": (1,)}.items()
            },
            "epoch": 7,
        },
        tmp_path / "w.pth",
    )
    network = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    with pytest.raises(EchoPlanError, match=r"lack 1\.weight, 1\.bias; they have besides head\.x"):
        load_weights(network, tmp_path / "w.pth")
    load_weights(network, tmp_path / "w.pth", ignore=("head.",), new=("1.",))
    assert network[0].weight.item() == 1


def test_variances_beyond_half_precision_are_its_largest_number_and_told_of(tmp_path, caplog) -> None:
    network = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    state = {key: value.half() if value.is_floating_point() else value for key, value in network.state_dict().items()}
    state["0.running_var"][1] = torch.inf
    torch.save(state, tmp_path / "w.pth")
    load_weights(network, tmp_path / "w.pth")
    assert network[0].running_var.tolist() == [1, 65504, 1]
    assert f"{tmp_path / 'w.pth'}: 1 of 3 variances in 0.running_var were too large for half precision" in caplog.text
    for key, value in (("0.running_var", torch.nan), ("0.weight", torch.inf)):
        torch.save({**state, key: torch.full((3,), value)}, tmp_path / "w.pth")
        with pytest.raises(EchoPlanError, match=f"are not finite in {key}"):
            load_weights(network, tmp_path / "w.pth")


def test_bottleneck_stride_moves_to_the_first_convolution() -> None:
    network = ResNetBackbone("resnet50", bottleneck_stride="1x1")
    for layer, stride in ((network.layer1, 1), (network.layer2, 2), (network.layer4, 2)):
        assert layer[0].conv1.stride == (stride, stride)
        assert layer[0].conv2.stride == (1, 1)
        assert layer[1].conv1.stride == (1, 1)


@pytest.mark.skipif(not SHARED.is_file(), reason="the half-precision ResNet-50 is not on this machine")
def test_half_precision_imagenet_weights_load() -> None:
    network = build_network("pkechonet", backbone="resnet50", size=(64, 64), pretrained=SHARED, bottleneck_stride="1x1")
    own = network.backbone.state_dict()
    file = torch.load(SHARED, weights_only=True)
    assert own["conv1.weight"].shape == (64, 1, 7, 7)
    assert {v.dtype for v in network.parameters()} == {torch.float32}
    torch.testing.assert_close(own["layer3.2.conv2.weight"], file["layer3.2.conv2.weight"].float())
    assert own["bn1.running_var"].max() == 65504
    with torch.no_grad():
        assert network.eval()(torch.randn(1, 2, 1, 64, 64)).isfinite().all()
