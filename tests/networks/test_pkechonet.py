from __future__ import annotations

import numpy as np
import pytest
import torch

from echoplan.errors import EchoPlanError
from echoplan.networks import build_network
from echoplan.networks.complexity import count_gmac, count_parameters
from echoplan.networks.pkechonet.model import _enlarge
from echoplan.networks.pkechonet.parts import (
    AffinityEstimator,
    Attention,
    apply_kernels,
    group_features,
    interpolate_phases,
    upsample_by_affinity,
)
from echoplan.networks.sliding_window import segment_clip


@pytest.mark.parametrize(
    ("backbone", "million", "gmac", "gmac_320"),
    [("resnet18", 11.78, 27.0, 42.0), ("resnet34", 21.89, 51.0, 80.0), ("resnet50", 25.71, 69.5, 109.0)],
)
def test_size_and_cost_are_the_papers(backbone: str, million: float, gmac: float, gmac_320: float) -> None:
    network = build_network("pkechonet", backbone=backbone, size=(256, 256)).to("meta")
    assert count_parameters(network) / 1e6 == pytest.approx(million, rel=0.01)
    assert count_gmac(network, (1, 10, 1, 256, 256)) == pytest.approx(gmac, rel=0.03)
    assert count_gmac(network, (1, 10, 1, 320, 320)) == pytest.approx(gmac_320, rel=0.01)


def test_upsampling_is_the_weighted_mean_of_the_neighbours() -> None:
    torch.manual_seed(0)
    estimator = AffinityEstimator(5, factor=2).eval()
    affinity = estimator(torch.randn(2, 5, 3, 4))
    coarse = torch.randn(2, 3, 3, 4)
    fine = upsample_by_affinity(coarse, affinity)
    expected = torch.zeros(2, 3, 6, 8)
    for row in range(6):
        for column in range(8):
            inner = (row % 2) * 2 + column % 2
            for i in range(9):
                r, c = row // 2 + i // 3 - 1, column // 2 + i % 3 - 1
                weight = affinity[:, i, inner, row // 2, column // 2]
                if 0 <= r < 3 and 0 <= c < 4:
                    expected[:, :, row, column] += weight[:, None] * coarse[:, :, r, c]
                else:
                    assert (weight == 0).all()
    torch.testing.assert_close(fine, expected)
    # A mean: a constant stays that constant up to the image's very edge.
    torch.testing.assert_close(upsample_by_affinity(torch.ones(2, 1, 3, 4), affinity), torch.ones(2, 1, 6, 8))


def test_grouping_is_a_mean_under_the_mask() -> None:
    features = torch.randn(1, 2, 4, 3, 3)
    logits = torch.full((1, 2, 1, 3, 3), -50.0)
    logits[:, :, :, 1, 2] = 50.0
    logits[:, :, :, 0, 0] = 50.0
    expected = (features[..., 1, 2] + features[..., 0, 0]) / 2
    torch.testing.assert_close(group_features(logits, features)[:, :, 0], expected)
    torch.testing.assert_close(group_features(logits, features, mean=False)[:, :, 0], 2 * expected)
    # The paper's sum is four times as large on a grid twice as fine.
    larger = [x.repeat_interleave(2, -1).repeat_interleave(2, -2) for x in (logits, features)]
    torch.testing.assert_close(group_features(*larger)[:, :, 0], expected)
    torch.testing.assert_close(group_features(*larger, mean=False)[:, :, 0], 8 * expected)
    # A mask that is nowhere is defined.
    assert group_features(torch.full((1, 2, 1, 3, 3), -200.0), features).isfinite().all()


def test_kernels_act_as_one_by_one_convolutions() -> None:
    kernels, features = torch.randn(2, 3, 2, 5), torch.randn(2, 3, 5, 4, 6)
    masks = apply_kernels(kernels, features)
    expected = torch.nn.functional.conv2d(features[1, 2][None], kernels[1, 2][:, :, None, None])[0]
    torch.testing.assert_close(masks[1, 2], expected)
    biased = apply_kernels(kernels, features, torch.tensor([0.5, -2.0]))
    torch.testing.assert_close(biased[1, 2] - masks[1, 2], torch.tensor([0.5, -2.0])[:, None, None].expand(2, 4, 6))


def test_attention_is_equation_3() -> None:
    torch.manual_seed(0)
    attention = Attention(8, head_channels=8, dropout=0.5).eval()
    q, kv = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    scores = attention.query(q) @ attention.key(kv).transpose(1, 2) / 8**0.5
    expected = attention.norm(attention.out(scores.softmax(-1) @ attention.value(kv)) + q)
    torch.testing.assert_close(attention(q, kv), expected)
    extra = attention(q.expand(4, 2, 3, 8), kv.expand(4, 2, 5, 8))
    torch.testing.assert_close(extra[2], expected)


def test_phases_are_relative_to_the_clip() -> None:
    embedding = torch.arange(10.0)[:, None].expand(10, 2)
    assert interpolate_phases(embedding, 10) is embedding
    torch.testing.assert_close(interpolate_phases(embedding, 4)[:, 0], torch.tensor([0.0, 3.0, 6.0, 9.0]))
    torch.testing.assert_close(interpolate_phases(embedding, 19)[:, 1], torch.arange(19) / 2)
    assert interpolate_phases(embedding, 1).tolist() == [[0.0, 0.0]]


def test_any_number_of_frames_and_all_stages() -> None:
    torch.manual_seed(0)
    network = build_network("pkechonet", size=(64, 32), classes=2)
    for frames in (1, 2, 10, 40):
        with torch.no_grad():
            assert network.eval()(torch.randn(1, frames, 1, 64, 32)).shape == (1, frames, 2, 64, 32)
    output = network.train()(torch.randn(2, 5, 1, 64, 32))
    assert [stage.shape for stage in output.auxiliary["stages"]] == [(2, 5, 2, 64, 32)] * 3
    assert not torch.equal(output.auxiliary["stages"][0], output.auxiliary["stages"][-1])


def test_frames_see_each_other_only_through_temporal_attention() -> None:
    torch.manual_seed(0)
    clip = torch.randn(1, 4, 1, 64, 64)
    changed = clip.clone()
    changed[:, 0] = 3
    for temporal in (True, False):
        network = build_network("pkechonet", size=(64, 64), temporal_attention=temporal).eval()
        with torch.no_grad():
            moved = (network(clip) - network(changed))[:, 1:].abs().max()
        assert (moved > 1e-4) == temporal


@pytest.mark.parametrize(("batch", "flips"), [(1, ()), (3, ("horizontal",))])
def test_a_long_clip_is_encoded_once_and_found_as_by_whole_windows(batch: int, flips: tuple[str, ...]) -> None:
    class Whole(torch.nn.Module):
        def forward(self, clip: torch.Tensor) -> torch.Tensor:
            return network(clip)

    torch.manual_seed(0)
    network = build_network("pkechonet", size=(32, 64)).eval()
    encoded: list[int] = []
    network.backbone.register_forward_pre_hook(lambda _, given: encoded.append(len(given[0])))
    clip, options = torch.randn(23, 32, 64), {"window": 4, "stride": 2, "batch": batch, "mirror_axes": flips}
    expected = segment_clip(Whole(), clip, classes=1, **options)
    assert sum(encoded) > 1.6 * 23 * (1 + len(flips))
    encoded.clear()
    found = segment_clip(network, clip, classes=1, **options)
    assert sum(encoded) == 23 * (1 + len(flips))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.std() > 0.01


def test_two_clips_are_not_taken_for_one() -> None:
    torch.manual_seed(0)
    network = build_network("pkechonet", size=(64, 64)).eval()
    clips = torch.randn(2, 5, 1, 64, 64)
    with torch.no_grad():
        assert (network(clips)[0] - network(clips.flatten(0, 1)[None])[0, :5]).abs().max() > 1e-4


def test_videos_of_a_batch_meet_in_training_only_when_asked() -> None:
    for cross_video in ("off", "train"):
        torch.manual_seed(0)
        network = build_network("pkechonet", size=(64, 64), cross_video=cross_video, dropout=0.0)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.0
        refine = network.segmentation.refinements[0].train()
        kernels, features = torch.randn(2, 3, 1, 32), torch.randn(2, 3, 32, 2, 2)
        other = kernels.clone()
        other[1] = 0
        logits, position = torch.zeros(2, 3, 1, 2, 2), torch.zeros(3, 32)
        moved = (refine(kernels, features, logits, position) - refine(other, features, logits, position))[0].abs().max()
        assert (moved > 1e-4) == (cross_video == "train")


@pytest.mark.parametrize(("interval", "factors"), [(1, [4, 2, 2, 2]), (2, [8, 4]), (3, [4, 8]), (4, [8])])
def test_estimators_at_any_interval_bring_masks_to_the_images_grid(interval: int, factors: list[int]) -> None:
    torch.manual_seed(0)
    network = build_network("pkechonet", size=(64, 64), proxy_interval=interval).eval()
    assert [estimator.factor for estimator in network.affinities] == factors
    clip = torch.randn(1, 1, 1, 64, 64)
    maps, affinities = network.backbone(clip[0]), network.encode_frames(clip)[1:]
    assert _enlarge(torch.full((1, 1, 2, 2, 2), 3.0), affinities).allclose(torch.tensor(3.0))
    coarse = torch.randn(1, 2, 2, 2)
    fine = upsample_by_affinity(coarse, network.affinities[-1](maps[-1]))
    if interval == 4:
        fine = torch.nn.functional.interpolate(fine, scale_factor=4, mode="bilinear")
    elif interval > 1:
        fine = upsample_by_affinity(fine, network.affinities[0](maps[0 if interval == 3 else 1]))
    if interval > 1:
        torch.testing.assert_close(_enlarge(coarse[None], affinities)[0], fine)


@pytest.mark.parametrize(("position", "spread"), [("attention", 0.02), ("kernels", 1.0)])
def test_the_phase_comes_in_at_every_attention_or_once_with_the_kernels(position: str, spread: float) -> None:
    torch.manual_seed(0)
    network = build_network("pkechonet", size=(64, 64), position=position).eval()
    segmentation = network.segmentation
    assert float(segmentation.position.detach().std()) == pytest.approx(spread, rel=0.2)
    given: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    updated: list[torch.Tensor] = []
    for refinement in segmentation.refinements:
        refinement.update.register_forward_hook(lambda _, __, output: updated.append(output))
        refinement.temporal.register_forward_pre_hook(
            lambda _, inputs, named: given.append((inputs[0], named["position"])), with_kwargs=True
        )
    with torch.no_grad():
        segmentation(torch.randn(1, 10, 32, 2, 2))
    added = [tokens - before.transpose(1, 2) for (tokens, _), before in zip(given, updated, strict=True)]
    phase = segmentation.position.detach()
    if position == "attention":
        assert all(torch.equal(told, phase) for _, told in given) and not any(extra.any() for extra in added)
    else:
        assert all(told is None for _, told in given) and not any(extra.any() for extra in added[1:])
        torch.testing.assert_close(added[0], phase.expand_as(added[0]), rtol=1e-4, atol=1e-5)


def test_each_stage_has_its_own_bias_where_asked_for() -> None:
    torch.manual_seed(0)
    network = build_network("pkechonet", size=(64, 64), kernel_bias=True, stages=1, region_proxy=False).train()
    clip = torch.randn(2, 2, 1, 64, 64)
    torch.manual_seed(1)
    before = network(clip)
    with torch.no_grad():
        network.segmentation.bias[1] += 0.7
    torch.manual_seed(1)
    after = network(clip)
    assert torch.equal(after.auxiliary["stages"][0], before.auxiliary["stages"][0])
    torch.testing.assert_close(after.logits, before.logits + 0.7)
    assert build_network("pkechonet", size=(64, 64)).segmentation.bias is None


def test_dropout_is_as_strong_as_asked_for() -> None:
    for dropout in (0.0, 0.5):
        torch.manual_seed(0)
        network = build_network("pkechonet", size=(64, 64), dropout=dropout).train()
        clip = torch.randn(2, 2, 1, 64, 64)
        with torch.no_grad():
            assert torch.equal(network(clip).logits, network(clip).logits) == (dropout == 0)


@pytest.mark.parametrize(
    "settings",
    [{"kernel_update": "gating"}, {"region_proxy": False}, {"stages": 0}, {"grouping": "sum", "kernel_bias": True}],
)
def test_the_ablations_run(settings: dict) -> None:
    network = build_network("pkechonet", size=(64, 64), **settings)
    output = network(torch.randn(2, 2, 1, 64, 64))
    assert output.logits.shape == (2, 2, 1, 64, 64)
    assert len(output.auxiliary["stages"]) == settings.get("stages", 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (250, 256)}, "multiples of 32"),
        ({"backbone": "resnet19"}, "resnet18, resnet34, resnet50"),
        ({"cross_video": "on"}, "off, train"),
        ({"kernel_update": "none"}, "hybrid, gating"),
        ({"grouping": "max"}, "mean, sum"),
        ({"position": "none"}, "attention, kernels"),
        ({"proxy_interval": 5}, "from 1 to 4, not 5"),
        ({"stages": -1}, "from 0 to 32, not -1"),
        ({"head_channels": 12}, "must divide"),
    ],
)
def test_settings_it_cannot_take(settings: dict, message: str) -> None:
    with pytest.raises(EchoPlanError, match=message):
        build_network("pkechonet", **{"size": (64, 64), **settings})
