from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.networks.nets import DynUNet

from echoplan.errors import EchoPlanError
from echoplan.networks import build_network
from echoplan.networks.complexity import count_parameters
from echoplan.networks.unet import _InstanceNorm, fitting_edge, pooling_steps


@pytest.mark.parametrize(
    ("size", "steps"),
    [
        ((256, 256), [(2, 2)] * 6),  # down to 4
        ((112, 112), [(2, 2)] * 4),  # down to 7, which is less than 8
        ((128, 32), [(2, 2)] * 3 + [(2, 1)] * 2),  # each axis by itself
    ],
)
def test_depth_follows_from_the_size(size: tuple[int, int], steps: list[tuple[int, int]]) -> None:
    assert pooling_steps(size) == steps


def test_sizes_that_cannot_be_halved_are_refused_with_one_that_can() -> None:
    with pytest.raises(EchoPlanError, match="112 x 128"):
        pooling_steps((100, 128))
    with pytest.raises(EchoPlanError, match="too small"):
        pooling_steps((8, 8))
    for edge in range(16, 300):
        assert fitting_edge(edge) >= edge
        pooling_steps((fitting_edge(edge), 256))
    network = build_network("unet", size=(64, 64), base_features=4)
    with pytest.raises(EchoPlanError, match="multiple of 16 pixels wide, not 72"):
        network(torch.zeros(1, 1, 1, 64, 72))


def test_the_frame_network_equals_monais_dynunet() -> None:
    torch.manual_seed(0)
    ours = build_network("unet", size=(32, 64), base_features=4, classes=2, deep_supervision=False).eval()
    strides = [1, 2, 2, 2, (1, 2)]
    strides = [(s, s) if isinstance(s, int) else s for s in strides]
    theirs = DynUNet(2, 1, 2, [(3, 3)] * 5, strides, strides[1:], filters=[4, 8, 16, 32, 64]).eval()

    # The same blocks in another order of definition: copy stage by stage, in the order of computation.
    def tensors(*modules: torch.nn.Module) -> list[torch.Tensor]:
        return [p for module in modules for p in module.parameters()]

    mine, other = ours.network, theirs
    source, target = [], []
    for stage, block in zip(mine.encoder, [other.input_block, *other.downsamples, other.bottleneck], strict=True):
        source += tensors(stage[0], stage[3], stage[1], stage[4])
        target += tensors(block.conv1, block.conv2, block.norm1, block.norm2)
    for i, block in enumerate(reversed(other.upsamples)):
        stage, inner = mine.decoder[i], block.conv_block
        source += tensors(mine.up[i], stage[0], stage[3], stage[1], stage[4])
        target += tensors(block.transp_conv, inner.conv1, inner.conv2, inner.norm1, inner.norm2)
    source += tensors(mine.head)
    target += tensors(other.output_block)
    assert len(source) == len(list(ours.parameters())) == len(target)
    with torch.no_grad():
        for a, b in zip(source, target, strict=True):
            a.normal_(std=0.2)
            b.copy_(a)
        frames = torch.randn(1, 3, 1, 32, 64)
        torch.testing.assert_close(ours(frames)[0], theirs(frames[0]), atol=1e-4, rtol=1e-4)


def test_deep_supervision_leaves_out_the_coarsest_level() -> None:
    for name in ("unet", "unet_2dt"):
        output = build_network(name, size=(64, 64), base_features=4, classes=2)(torch.randn(2, 3, 1, 64, 64))
        # 4 halvings: decoder levels at 64, 32, 16 and 8; nnU-Net gives the last no weight.
        assert [x.shape for x in output.auxiliary["deep_supervision"]] == [(2, 3, 2, 32, 32), (2, 3, 2, 16, 16)]
        output = build_network(name, size=(64, 64), base_features=4, deep_supervision=False)(
            torch.randn(1, 2, 1, 64, 64)
        )
        assert output.auxiliary == {}


def test_frames_of_the_frame_network_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    clip = torch.randn(1, 5, 1, 32, 32)
    changed = clip.clone()
    changed[:, 0] = 0
    network = build_network("unet", size=(32, 32), base_features=4).eval()
    with torch.no_grad():
        torch.testing.assert_close(network(clip)[:, 1:], network(changed)[:, 1:], atol=1e-5, rtol=1e-5)


def test_space_time_keeps_time_and_needs_no_zeros_beyond_its_ends() -> None:
    torch.manual_seed(0)
    network = build_network("unet_2dt", size=(32, 32), base_features=4).eval()
    frame = torch.randn(1, 1, 1, 32, 32)
    with torch.no_grad():
        alone = network(frame)
        # A clip that stands still gives every frame the same answer, end frames and single frames included.
        for frames in (2, 7, 40):
            still = network(frame.expand(1, frames, 1, 32, 32))
            torch.testing.assert_close(still, alone.expand(still.shape), atol=1e-4, rtol=1e-4)
        clip = torch.randn(1, 6, 1, 32, 32)
        torch.testing.assert_close(network(clip.flip(1))[:, 0].shape, network(clip)[:, 0].shape)
        changed = clip.clone()
        changed[:, 0] = 0
        assert (network(clip) - network(changed))[:, 2].abs().max() > 1e-3


def test_flat_stages_have_no_kernel_in_time() -> None:
    network = build_network("unet_2dt", size=(64, 64), base_features=4, flat_stages=2)
    in_time = [stage[0].kernel_size[0] for stage in network.network.encoder]
    assert in_time == [1, 1, 3, 3, 3]
    flat = build_network("unet_2dt", size=(64, 64), base_features=4, flat_stages=5, max_features=64)
    frame = build_network("unet", size=(64, 64), base_features=4, max_features=64)
    assert count_parameters(flat) == count_parameters(frame)


@pytest.mark.parametrize("name", ["unet", "unet_2dt"])
def test_gpus_normalise_as_cpus_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel that other devices than the CPU run, here on the CPU: equal answers and gradients."""
    torch.manual_seed(0)
    network = build_network(name, size=(32, 32), base_features=4).double()
    for parameter in network.parameters():  # else weight and bias of the normalisations are all one and zero
        parameter.data.normal_(std=0.3)
    clip = torch.randn(2, 3, 1, 32, 32, dtype=torch.float64)

    def answer_and_gradients() -> list[torch.Tensor]:
        output = network(clip)
        loss = output.logits.square().mean() + sum(low.mean() for low in output.auxiliary["deep_supervision"])
        return [output.logits, *torch.autograd.grad(loss, list(network.parameters()))]

    on_cpu = answer_and_gradients()
    monkeypatch.setattr(_InstanceNorm, "forward", _InstanceNorm.as_batch_norm)
    for mine, other in zip(answer_and_gradients(), on_cpu, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (3, 3, 5, 4), (1, 3, 2, 6, 5), (2, 3, 4, 4)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.preserve_format])
def test_maps_of_any_shape_and_layout_are_normalised_alike(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    norm = _InstanceNorm(3)
    norm.load_state_dict({"weight": torch.randn(3), "bias": torch.randn(3)})
    maps = torch.randn(shape)
    if layout == torch.preserve_format:  # channels last, as convolutions give them on GPUs
        maps = maps.movedim(1, -1).contiguous().movedim(-1, 1)
    with torch.no_grad():
        torch.testing.assert_close(norm.as_batch_norm(maps), norm(maps), atol=1e-6, rtol=1e-6)


def test_a_checkpoint_from_when_the_norm_was_groupnorm_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    old, new = (build_network("unet", size=(32, 32), base_features=4) for _ in range(2))
    for stage in (*old.network.encoder, *old.network.decoder):
        for index in (1, 4):
            stage[index] = torch.nn.GroupNorm(stage[index].num_channels, stage[index].num_channels)
            torch.nn.init.normal_(stage[index].weight)
    torch.save(old.state_dict(), tmp_path / "old.pth")
    new.load_state_dict(torch.load(tmp_path / "old.pth", weights_only=True))
    clip = torch.randn(1, 2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(new.eval()(clip), old.eval()(clip), atol=0, rtol=0)
