from __future__ import annotations

import math

import pytest
import torch

from echoplan.training.losses import edge_loss, edge_target, entropy_loss

GRIDS = (64, 16, 4, 1)  # points of the four grids of a 32 x 32 frame, at strides 4, 8, 16 and 32


def _disc(size: int, radius: float) -> tuple[torch.Tensor, torch.Tensor]:
    along = torch.arange(size) - (size - 1) / 2
    distance = torch.hypot(along[:, None], along[None, :])
    return (distance < radius).byte(), distance


def _target(frames: int = 3) -> torch.Tensor:
    return _disc(32, 9)[0].expand(2, frames, 32, 32).clone()


def _entropies(target: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.rand(*target.shape[:2], points).requires_grad_() for points in GRIDS]


def test_entropy_loss_by_hand() -> None:
    target = torch.zeros(1, 1, 4, 8, dtype=torch.uint8)
    target[..., :2] = 1  # the left half of the first of two points
    entropy = torch.tensor([0.2, 0.8]).view(1, 1, 2)
    background = (0.2 * 8 + 0.8 * 16) / 24
    assert entropy_loss([entropy], target).item() == pytest.approx(0.2 - background)
    # Pixels that nobody labelled leave the means.
    target[..., 6:] = 255
    assert entropy_loss([entropy], target).item() == pytest.approx(0.2 - (0.2 * 8 + 0.8 * 8) / 16)


def test_entropy_loss_weighs_points_by_the_mask_in_between() -> None:
    target = _target(frames=1)
    for entropy, side in zip(_entropies(target)[:2], (8, 4), strict=False):
        inside = torch.nn.functional.interpolate(target.float(), size=(side, side), mode="bilinear").flatten(2)
        means = [(entropy * each).sum(2) / each.sum(2) for each in (inside, 1 - inside)]
        torch.testing.assert_close(entropy_loss([entropy], target), (means[0] - means[1]).mean())


def test_a_bounded_gap_teaches_only_where_it_is_open() -> None:
    target = _target(frames=1)
    inside = target.float()[:, :, ::4, ::4].flatten(2)
    closed, opened = (0.2 + 0.3 * inside).requires_grad_(), (0.5 - 0.3 * inside).requires_grad_()
    assert entropy_loss([closed], target, bounded=True).item() == pytest.approx(-1e-3)
    loss = entropy_loss([closed, opened], target, bounded=True)
    loss.backward()
    assert not closed.grad.any() and opened.grad.any()
    free = entropy_loss([opened], target)
    assert loss.item() == pytest.approx((free.item() - 1e-3) / 2)


def test_entropy_loss_focuses_the_foreground_and_blurs_the_background() -> None:
    target = _target()
    entropies = _entropies(target)
    entropy_loss(entropies, target).backward()
    slope = entropies[0].grad.view(2, 3, 8, 8)
    assert (slope[:, :, 3:5, 3:5] > 0).all()  # descent lowers it inside
    assert (slope[:, :, 0] < 0).all()  # and raises it outside
    ideal = [1 - torch.nn.functional.avg_pool2d(target.float(), 4).flatten(2).round()]
    assert entropy_loss(ideal, target) < -0.7
    assert entropy_loss([1 - ideal[0]], target) > 0.7


def test_entropy_loss_is_a_mean_over_frames_and_maps() -> None:
    target = _target(frames=2)
    entropies = _entropies(target)[:2]  # at four points all are structure
    single = [
        entropy_loss([each[i : i + 1, t : t + 1]], target[i : i + 1, t : t + 1])
        for each in entropies
        for i in range(2)
        for t in range(2)
    ]
    torch.testing.assert_close(entropy_loss(entropies, target), torch.stack(single).mean())


@pytest.mark.parametrize("label", [0, 1, 255])
def test_entropy_loss_leaves_out_frames_without_one_of_the_regions(label: int) -> None:
    target = _target()
    target[:, 1] = label
    entropies = _entropies(target)
    without = entropy_loss([each[:, [0, 2]] for each in entropies], target[:, [0, 2]])
    with torch.no_grad():
        entropies[0][:, 1] = math.nan
    value = entropy_loss(entropies, target)
    torch.testing.assert_close(value, without)
    value.backward()
    for each in entropies:
        assert (each.grad[:, 1] == 0).all()
        assert each.grad.isfinite().all()


def test_entropy_loss_without_labels_is_a_connected_zero() -> None:
    target = torch.full_like(_target(), 255)
    entropies = _entropies(target)
    value = entropy_loss(entropies, target)
    assert value.item() == 0
    value.backward()
    assert all((each.grad == 0).all() for each in entropies)


def test_foreground_of_several_classes_is_all_but_the_background() -> None:
    target = _target()
    entropies = _entropies(target)
    several = target.clone()
    several[..., :16, :] *= 2
    torch.testing.assert_close(entropy_loss(entropies, several, classes=3), entropy_loss(entropies, target))
    assert entropy_loss(entropies, several) != entropy_loss(entropies, target)


def test_edge_target_of_a_disc_is_a_thin_ring_of_its_radius() -> None:
    disc, _ = _disc(128, 40)
    edges = edge_target(disc.view(1, 1, 128, 128))
    assert edges.shape == (1, 1, 32, 32)
    assert edges.dtype == torch.uint8
    _, distance = _disc(32, 10)  # the coarse points' centres, in steps of four pixels
    ring = distance[edges[0, 0] == 1]
    assert 8.5 < ring.min() < 10 < ring.max() < 11.5
    assert 1.0 < len(ring) / (2 * math.pi * 10) < 2.0  # one or two points wide


def test_edge_target_by_hand() -> None:
    labels = torch.zeros(1, 1, 4, 12, dtype=torch.uint8)
    labels[..., :6] = 1
    assert edge_target(labels, stride=2).tolist() == [[[[0, 0, 1, 1, 0, 0]] * 2]]
    assert edge_target(labels, stride=4).tolist() == [[[[0, 1, 0]]]]
    # A point is unknown where one of its pixels touches an unlabelled one.
    labels[..., 9] = 255
    assert edge_target(labels, stride=2).tolist() == [[[[0, 0, 1, 1, 255, 255]] * 2]]
    labels[:] = 255
    assert (edge_target(labels) == 255).all()


def test_edge_target_of_classes_has_the_edges_between_them() -> None:
    labels = torch.zeros(1, 1, 4, 16, dtype=torch.uint8)
    labels[..., 6:10] = 1
    labels[..., 10:] = 2
    assert edge_target(labels, classes=3).tolist() == [[[[0, 1, 1, 0]]]]
    labels[..., 10:] = 0
    labels[..., :6] = 2
    assert edge_target(labels, classes=1).tolist() == edge_target((labels == 1).byte()).tolist()


def test_edge_loss_by_hand_and_least_for_the_truth() -> None:
    labels = torch.zeros(1, 2, 4, 12, dtype=torch.uint8)
    labels[..., :6] = 1
    labels[:, 1] = 255
    logits = torch.tensor([0.1, 0.8, 0.4]).logit().view(1, 1, 1, 1, 3).repeat(1, 2, 1, 1, 1)
    expected = -(math.log(0.9) + math.log(0.8) + math.log(0.6)) / 3
    assert edge_loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)
    truth = (edge_target(labels).unsqueeze(2).float() - 0.5) * 80
    assert edge_loss(truth, labels).item() == pytest.approx(0, abs=1e-6)


def test_edge_loss_ignores_what_nobody_labelled() -> None:
    target = _target()
    target[:, 1] = 255
    target[0, 0, :10] = 255
    unknown = (edge_target(target) == 255).unsqueeze(2)
    logits = torch.randn(2, 3, 1, 8, 8).masked_fill(unknown, math.nan).requires_grad_()
    value = edge_loss(logits, target)
    value.backward()
    assert value.isfinite()
    assert (logits.grad[unknown] == 0).all()
    assert (logits.grad[~unknown] != 0).all()
    nothing = edge_loss(logits, torch.full_like(target, 255))
    assert nothing.item() == 0
