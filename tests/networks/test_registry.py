from __future__ import annotations

import copy

import pytest
import torch

from echoplan.errors import EchoPlanError
from echoplan.networks import ClipOutput, build_network, network_names

SMALL = {"unet": {"base_features": 4}, "unet_2dt": {"base_features": 4}, "pkechonet": {}}


def test_every_name_is_sorted_and_builds() -> None:
    assert network_names() == sorted(network_names())
    assert set(SMALL) <= set(network_names())


@pytest.mark.parametrize("name", sorted(SMALL))
@pytest.mark.parametrize("frames", [1, 3])
def test_forward_gives_logits_on_the_clips_grid(name: str, frames: int) -> None:
    torch.manual_seed(0)
    network = build_network(name, size=(64, 96), classes=3, **SMALL[name])
    clip = torch.randn(2, frames, 1, 64, 96)
    with torch.no_grad():
        assert network.eval()(clip).shape == (2, frames, 3, 64, 96)
        output = network.train()(clip)
    assert isinstance(output, ClipOutput)
    assert output.logits.shape == (2, frames, 3, 64, 96)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_clip_does_not_depend_on_its_batch_mates(name: str) -> None:
    torch.manual_seed(0)
    network = build_network(
        name, size=(64, 64), **SMALL[name], **({"cross_video": "train"} if name == "pkechonet" else {})
    )
    clips = torch.randn(3, 4, 1, 64, 64)
    with torch.no_grad():
        network.train()(clips)  # moves the running statistics away from 0 and 1
        together = network.eval()(clips)
        for i in range(3):
            torch.testing.assert_close(network(clips[i : i + 1])[0], together[i], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_parameter_learns_and_a_network_in_training_can_be_copied(name: str) -> None:
    torch.manual_seed(0)
    network = build_network(name, size=(64, 64), **SMALL[name])
    output = network(torch.randn(2, 3, 1, 64, 64))
    (
        output.logits.square().mean() + sum(x.square().mean() for part in output.auxiliary.values() for x in part)
    ).backward()
    assert [key for key, p in network.named_parameters() if p.grad is None] == []
    copied = copy.deepcopy(network)
    assert len(copied.state_dict()) == len({v.data_ptr() for v in copied.state_dict().values()})


def test_faulty_requests_say_what_is_near() -> None:
    with pytest.raises(EchoPlanError, match=r"did you mean pkechonet"):
        build_network("pkecho", size=(64, 64))
    with pytest.raises(EchoPlanError, match=r"no setting 'base_feature'.*did you mean base_features"):
        build_network("unet", size=(64, 64), base_feature=8)
    with pytest.raises(EchoPlanError, match="no pretrained weights"):
        build_network("unet", size=(64, 64), pretrained=True)
    with pytest.raises(EchoPlanError, match="at least one output channel"):
        build_network("unet", size=(64, 64), classes=0)
