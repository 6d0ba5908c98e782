from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from echoplan.errors import EchoPlanError
from echoplan.training.losses import (
    boundary_loss,
    cross_entropy_loss,
    deep_supervision_loss,
    dice_ce_loss,
    reduce_labels,
    signed_distance_maps,
    soft_dice_loss,
)


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def _boundary(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    maps = signed_distance_maps(target.numpy(), classes=logits.shape[2])
    return boundary_loss(logits, torch.from_numpy(maps), target)


LOSSES = {
    "dice": soft_dice_loss,
    "dice of the batch": partial(soft_dice_loss, per_frame=False),
    "squared dice": partial(soft_dice_loss, squared=True, background=True),
    "cross-entropy": cross_entropy_loss,
    "boundary": _boundary,
    "dice and cross-entropy": dice_ce_loss,
    "deep": lambda logits, target: deep_supervision_loss([logits, logits[..., 1::2, 1::2]], target, loss=dice_ce_loss),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def _batch(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, classes, 8, 8, generator=generator)
    target = torch.randint(0, max(2, classes), (2, 4, 8, 8), generator=generator).to(torch.uint8)
    return logits, target


@every_loss
@pytest.mark.parametrize("classes", [1, 3])
def test_ignored_pixels_have_neither_weight_nor_gradient(loss, classes: int) -> None:
    logits, target = _batch(classes)
    target[0, 1] = 255
    target[1, 2, :3] = 255
    ignored = (target == 255).unsqueeze(2).expand(logits.shape)
    value = loss(logits.requires_grad_(), target)
    value.backward()
    assert (logits.grad[ignored] == 0).all()
    assert (logits.grad[~ignored] != 0).any()
    # Whatever stands there, broken numbers included.
    other = torch.where(ignored, torch.tensor(float("nan")), logits.detach()).requires_grad_()
    other_value = loss(other, target)
    other_value.backward()
    torch.testing.assert_close(other_value, value)
    torch.testing.assert_close(other.grad, logits.grad)


@every_loss
@pytest.mark.parametrize("classes", [1, 3])
def test_unlabelled_frames_contribute_nothing(loss, classes: int) -> None:
    logits, target = _batch(classes)
    target[:, 1:3] = 255
    expected = loss(logits[:, [0, 3]], target[:, [0, 3]])
    torch.testing.assert_close(loss(logits, target), expected)


@every_loss
@pytest.mark.parametrize("classes", [1, 3])
def test_no_label_at_all_is_a_connected_zero(loss, classes: int) -> None:
    logits, target = _batch(classes)
    value = loss(logits.requires_grad_(), torch.full_like(target, 255))
    assert value.item() == 0
    value.backward()
    assert (logits.grad == 0).all()


@every_loss
@pytest.mark.parametrize("classes", [1, 3])
def test_long_and_half_precision_give_the_same(loss, classes: int) -> None:
    logits, target = _batch(classes)
    exact = logits.to(torch.bfloat16).float()
    torch.testing.assert_close(loss(exact.to(torch.bfloat16), target), loss(exact, target))
    torch.testing.assert_close(loss(exact, target.long()), loss(exact, target))


def test_dice_by_hand() -> None:
    logits = torch.tensor([_logit(0.8), _logit(0.6), _logit(0.3), _logit(0.1)]).view(1, 1, 1, 2, 2)
    target = torch.tensor([1, 1, 0, 0]).view(1, 1, 2, 2)
    assert soft_dice_loss(logits, target).item() == pytest.approx(1 - (2 * 1.4 + 1) / (1.8 + 2 + 1))
    assert soft_dice_loss(logits, target, smooth=0.1).item() == pytest.approx(1 - (2 * 1.4 + 0.1) / (1.8 + 2 + 0.1))
    squares = 0.64 + 0.36 + 0.09 + 0.01
    assert soft_dice_loss(logits, target, squared=True).item() == pytest.approx(1 - (2 * 1.4 + 1) / (squares + 2 + 1))
    # The ignored pixel leaves both sums.
    target[0, 0, 0, 0] = 255
    assert soft_dice_loss(logits, target).item() == pytest.approx(1 - (2 * 0.6 + 1) / (1.0 + 1 + 1))


def test_dice_of_frames_and_of_the_batch() -> None:
    logits = torch.tensor([0.9, 0.9, 0.2, 0.2]).logit().view(1, 2, 1, 1, 2)
    target = torch.tensor([1, 1, 1, 0]).view(1, 2, 1, 2)
    first, second = 1 - (3.6 + 1) / (1.8 + 2 + 1), 1 - (0.4 + 1) / (0.4 + 1 + 1)
    assert soft_dice_loss(logits, target).item() == pytest.approx((first + second) / 2)
    assert soft_dice_loss(logits, target, per_frame=False).item() == pytest.approx(1 - (4.0 + 1) / (2.2 + 3 + 1))


def test_dice_of_classes_leaves_the_background_out_unless_asked() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])  # two pixels, three classes
    logits = probabilities.log().T.reshape(1, 1, 3, 1, 2)
    target = torch.tensor([0, 1]).view(1, 1, 1, 2)
    of = [
        1 - (2 * hit + 1) / (total + truth + 1) for hit, total, truth in ((0.7, 0.8, 1), (0.6, 0.8, 1), (0.0, 0.4, 0))
    ]
    assert soft_dice_loss(logits, target).item() == pytest.approx(sum(of[1:]) / 2)
    assert soft_dice_loss(logits, target, background=True).item() == pytest.approx(sum(of) / 3)


def test_dice_of_empty_masks() -> None:
    empty = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    assert soft_dice_loss(torch.full((1, 1, 1, 4, 4), -40.0), empty).item() == pytest.approx(0, abs=1e-6)
    assert soft_dice_loss(torch.full((1, 1, 1, 4, 4), 40.0), empty).item() == pytest.approx(16 / 17)
    with pytest.raises(EchoPlanError, match="positive"):
        soft_dice_loss(torch.zeros(1, 1, 1, 4, 4), empty, smooth=0)


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([0.8, 0.4, 0.3]).logit().view(1, 1, 1, 1, 3)
    target = torch.tensor([1, 0, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    assert cross_entropy_loss(logits, target).item() == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])
    logits = probabilities.log().T.reshape(1, 1, 3, 1, 2)
    target = torch.tensor([0, 2]).view(1, 1, 1, 2)
    assert cross_entropy_loss(logits, target).item() == pytest.approx(-(math.log(0.7) + math.log(0.3)) / 2)


def test_cross_entropy_is_a_mean_over_pixels_not_over_frames() -> None:
    logits = torch.tensor([0.5, 0.5, 0.5, 0.9]).logit().view(1, 2, 1, 1, 2)
    target = torch.tensor([1, 1, 255, 1], dtype=torch.uint8).view(1, 2, 1, 2)
    assert cross_entropy_loss(logits, target).item() == pytest.approx(-(2 * math.log(0.5) + math.log(0.9)) / 3)


def test_signed_distances_by_hand() -> None:
    labels = np.zeros((1, 7), np.uint8)
    labels[0, 1:6] = 1  # . # # # # # .
    pixels = signed_distance_maps(labels, normalise="none")
    assert pixels.tolist() == [[1, 0, -1, -2, -1, 0, 1]]
    assert pixels.dtype == np.float32
    assert signed_distance_maps(labels).tolist() == [[1, 0, -0.5, -1, -0.5, 0, 1]]
    np.testing.assert_allclose(signed_distance_maps(labels, normalise="diagonal"), pixels / np.hypot(1, 7), rtol=1e-6)


def test_signed_distances_of_many_frames_and_classes() -> None:
    labels = np.zeros((2, 3, 9, 9), np.uint8)
    labels[0, 0, 3:6, 3:6] = 1
    labels[0, 0, 6, 3:6] = 2
    labels[0, 1] = 255
    labels[1, 2] = 1  # fills all: no boundary
    maps = signed_distance_maps(labels, classes=3)
    assert maps.shape == (2, 3, 2, 9, 9)
    np.testing.assert_array_equal(maps[:, :, 0], signed_distance_maps(labels))
    np.testing.assert_array_equal(maps[0, 0, 1], signed_distance_maps((labels[0, 0] == 2).astype(np.uint8)))
    assert maps[0, 0, 0, 4, 4] == -1
    assert maps.max() == 1
    assert not maps[0, 1:].any()
    assert not maps[1].any()
    with pytest.raises(EchoPlanError, match="sides, diagonal or none"):
        signed_distance_maps(labels, normalise="size")


def test_boundary_loss_by_hand_and_least_for_the_truth() -> None:
    target = torch.zeros(1, 1, 1, 7, dtype=torch.uint8)
    target[..., 1:6] = 1
    maps = torch.from_numpy(signed_distance_maps(target.numpy(), normalise="none"))
    assert boundary_loss(torch.zeros(1, 1, 1, 1, 7), maps, target).item() == pytest.approx(
        0.5 * (1 - 1 - 2 - 1 + 1) / 7
    )
    perfect = (target.unsqueeze(2).float() - 0.5) * 80
    assert boundary_loss(perfect, maps, target).item() == pytest.approx(-4 / 7)
    for shift in (-2, -1, 1, 2):
        assert boundary_loss(perfect.roll(shift, -1), maps, target) > boundary_loss(perfect, maps, target)


def test_boundary_loss_of_classes_is_their_mean() -> None:
    logits, target = _batch(3)
    maps = torch.from_numpy(signed_distance_maps(target.numpy(), classes=3))
    expected = (logits.softmax(2)[:, :, 1:] * maps).mean()
    torch.testing.assert_close(boundary_loss(logits, maps, target), expected)


def test_compound_is_the_weighted_sum() -> None:
    logits, target = _batch(1)
    expected = 0.3 * soft_dice_loss(logits, target, smooth=2.0) + 2 * cross_entropy_loss(logits, target)
    torch.testing.assert_close(dice_ce_loss(logits, target, dice_weight=0.3, ce_weight=2, smooth=2.0), expected)


def test_deep_supervision_weights_and_targets() -> None:
    logits, target = _batch(1)
    half, quarter = torch.randn(2, 4, 1, 4, 4), torch.randn(2, 4, 1, 2, 2)
    expected = (
        soft_dice_loss(logits, target)
        + soft_dice_loss(half, reduce_labels(target, (4, 4))) / 2
        + soft_dice_loss(quarter, reduce_labels(target, (2, 2))) / 4
    ) / 1.75
    torch.testing.assert_close(deep_supervision_loss([logits, half, quarter], target, loss=soft_dice_loss), expected)


def test_reduced_labels_are_the_nearest_ones() -> None:
    target = torch.randint(0, 4, (2, 3, 12, 10), dtype=torch.uint8)
    target[0, 0] = 255
    for size in ((12, 10), (6, 5), (4, 2), (5, 3)):
        expected = torch.nn.functional.interpolate(target.float(), size, mode="nearest-exact").byte()
        torch.testing.assert_close(reduce_labels(target, size), expected)
    assert reduce_labels(target, (3, 5)).dtype == torch.uint8
