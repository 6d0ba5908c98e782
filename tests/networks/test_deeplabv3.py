from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models.segmentation import deeplabv3_resnet50

from echoplan.errors import EchoPlanError
from echoplan.networks import build_network
from echoplan.networks.deeplabv3 import DeepLabV3

from ..real_data import REAL_DATA

SHARED = REAL_DATA / "weights" / "resnet50_imagenet_fp16.pth"


@pytest.fixture(scope="module")
def network() -> DeepLabV3:
    torch.manual_seed(0)
    return build_network("deeplabv3", size=(32, 48), classes=3, standardise="clip")


@torch.inference_mode()
def test_it_is_torchvisions_on_every_frame_by_itself(network: DeepLabV3) -> None:
    torch.manual_seed(1)
    theirs = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=3).eval()
    own = network.eval()
    theirs.load_state_dict(own.state_dict())
    clip = torch.randn(2, 3, 1, 32, 48)
    logits = own(clip)
    assert logits.shape == (2, 3, 3, 32, 48)
    torch.testing.assert_close(logits.flatten(0, 1), theirs(clip.flatten(0, 1).repeat(1, 3, 1, 1))["out"])
    torch.testing.assert_close(own(clip[1:, 2:]), logits[1:, 2:], atol=1e-5, rtol=1e-5)


def test_a_single_frame_trains_on_the_running_statistics_of_its_pooling(network: DeepLabV3) -> None:
    network.train()
    pooling = network.classifier[0].convs[-1][2]
    network(torch.randn(1, 1, 1, 32, 48)).sum().backward()
    assert pooling.num_batches_tracked == 0
    assert network.backbone.bn1.num_batches_tracked == 1
    network(torch.randn(1, 2, 1, 32, 48))
    assert pooling.num_batches_tracked == 1
    assert not network.eval().classifier[0].convs[-1][2].training


def test_a_whole_published_network_loads_strictly_and_grey_levels_are_standardised(tmp_path: Path) -> None:
    """As EchoNet-Dynamic's authors save theirs: DataParallel's names beside the optimiser's state."""
    torch.manual_seed(2)
    theirs = deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=False, num_classes=1).eval()
    state = {f"module.{key}": value for key, value in theirs.state_dict().items()}
    file = tmp_path / "deeplabv3_resnet50_random.pt"
    torch.save({"epoch": 28, "state_dict": state, "best_loss": float("inf"), "opt_dict": {"state": {}}}, file)
    own = build_network("deeplabv3", size=(32, 48), pretrained=file).eval()
    own.grey_mean.fill_(33.0), own.grey_sd.fill_(50.0)
    grey = torch.randint(0, 256, (1, 2, 1, 32, 48)).float()
    with torch.inference_mode():
        expected = theirs((grey[0].expand(-1, 3, -1, -1) - 33) / 50)["out"]
        torch.testing.assert_close(own(grey)[0], expected)
    del state["module.classifier.4.bias"]
    torch.save({"state_dict": state}, file)
    with pytest.raises(EchoPlanError, match=r"lack classifier\.4\.bias"):
        build_network("deeplabv3", size=(32, 48), pretrained=file)


@pytest.mark.skipif(not SHARED.is_file(), reason="the half-precision ResNet-50 is not on this machine")
def test_imagenet_weights_load_into_the_backbone() -> None:
    network = build_network("deeplabv3", size=(64, 64), pretrained=SHARED, bottleneck_stride="1x1")
    file = torch.load(SHARED, weights_only=True)
    own = network.backbone.state_dict()
    for name in ("conv1.weight", "layer4.2.conv3.weight"):
        torch.testing.assert_close(own[name], file[name].float())
    first = network.backbone.layer2[0]
    assert (first.conv1.stride, first.conv2.stride) == ((2, 2), (1, 1))


def test_unknown_settings_are_refused() -> None:
    for name in ("bottleneck_stride", "standardise"):
        with pytest.raises(EchoPlanError, match=name):
            build_network("deeplabv3", size=(64, 64), **{name: "2x2"})
