from __future__ import annotations

import math

import pytest
import torch

from echoplan.errors import EchoPlanError
from echoplan.training.losses import dice_ce_loss
from echoplan.training.semi_supervision import FlameRise, confident_share, hidden_dice, pseudo_labels

IGNORE = 255


def test_the_schedules_are_equations_7_and_8() -> None:
    rise = FlameRise(50, start=0.1, end=0.6, weight=2.0, first_threshold=0.95, last_threshold=0.80)
    expected = {1: (0, 0.95), 5: (0, 0.95), 6: (2 / 25, 0.944), 15: (0.8, 0.89), 30: (2, 0.80), 31: (2, 0.80)}
    for epoch, (weight, threshold) in {**expected, 50: (2, 0.80)}.items():
        assert rise.weight_at(epoch) == pytest.approx(weight)
        assert rise.threshold_at(epoch) == pytest.approx(threshold)


@pytest.mark.parametrize("epochs", [1, 2, 3, 7])
def test_short_trainings_have_schedules_too(epochs: int) -> None:
    rise = FlameRise(epochs)
    weights = [rise.weight_at(epoch) for epoch in range(1, epochs + 1)]
    assert weights == sorted(weights) and weights[-1] == 1


def test_without_a_rise_the_last_values_hold_from_the_first_epoch_on() -> None:
    constant, step = FlameRise(9, start=0, end=0, weight=0.5), FlameRise(10, start=0.5, end=0.5)
    assert {constant.weight_at(epoch) for epoch in range(1, 10)} == {0.5}
    assert {constant.threshold_at(epoch) for epoch in range(1, 10)} == {0.80}
    assert [step.weight_at(epoch) for epoch in (5, 6)] == [0, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 0.7, "end": 0.6}, "from 0.7 to 0.6"),
        ({"end": 1.5}, "shares in"),
        ({"first_threshold": 1.2}, "not at 1.2"),
        ({"last_threshold": -0.1}, "not at -0.1"),
        ({"weight": -1.0}, "negative"),
    ],
)
def test_impossible_schedules_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(EchoPlanError, match=message):
        FlameRise(10, **settings)


def test_only_sure_and_unlabelled_pixels_get_a_pseudo_label() -> None:
    probabilities = torch.tensor([0.99, 0.9, 0.5, 0.1, 0.01, 0.99]).view(1, 1, 1, 1, 6)
    labels = torch.tensor([IGNORE] * 5 + [0], dtype=torch.uint8).view(1, 1, 1, 6)
    assert pseudo_labels(probabilities, labels, threshold=0.9).flatten().tolist() == [1, 1, 255, 0, 0, 255]
    assert pseudo_labels(probabilities, labels, threshold=0.95).flatten().tolist() == [1, 255, 255, 255, 0, 255]
    assert pseudo_labels(probabilities, labels, threshold=0.5).dtype == torch.uint8


def test_several_classes_take_the_most_probable_one() -> None:
    probabilities = torch.tensor([[0.1, 0.4, 0.0], [0.2, 0.3, 1.0], [0.7, 0.3, 0.0]]).view(1, 1, 3, 1, 3)
    labels = torch.full((1, 1, 1, 3), IGNORE, dtype=torch.uint8)
    assert pseudo_labels(probabilities, labels, threshold=0.6).flatten().tolist() == [2, 255, 1]


def test_pixels_under_the_threshold_give_no_gradient_and_pseudo_labels_none_at_all() -> None:
    logits = torch.randn(1, 2, 1, 4, 4, requires_grad=True)
    source = torch.randn(1, 2, 1, 4, 4, requires_grad=True)
    labels = torch.full((1, 2, 4, 4), IGNORE, dtype=torch.uint8)
    labels[:, 0] = 1
    pseudo = pseudo_labels(source.sigmoid(), labels, threshold=0.7)
    unsure = torch.maximum(source.sigmoid(), 1 - source.sigmoid())[:, :, 0] < 0.7
    assert unsure[:, 1].any() and not unsure[:, 1].all()
    dice_ce_loss(logits, pseudo).backward()
    assert source.grad is None
    assert not logits.grad[:, 0].any()  # labelled frames have their own loss
    assert not logits.grad[:, 1, 0][unsure[:, 1]].any() and logits.grad[:, 1, 0][~unsure[:, 1]].all()


def test_the_share_counts_unlabelled_pixels_alone() -> None:
    labels = torch.full((1, 2, 2, 2), IGNORE, dtype=torch.uint8)
    labels[:, 0] = 0
    pseudo = torch.full_like(labels, IGNORE)
    pseudo[0, 1, 0] = 1
    assert confident_share(pseudo, labels) == 0.5
    assert math.isnan(confident_share(pseudo[:, :1], labels[:, :1]))


def test_dice_with_the_hidden_truth() -> None:
    probabilities = torch.tensor([[0.9, 0.6], [0.2, 0.4]]).view(1, 1, 1, 2, 2).repeat(1, 2, 1, 1, 1)
    hidden = torch.tensor([[1, 0], [0, 0]]).view(1, 1, 2, 2).repeat(1, 2, 1, 1)
    hidden[:, 1] = IGNORE
    assert hidden_dice(probabilities, hidden).item() == pytest.approx(2 / 3, abs=1e-3)
    two = torch.cat([1 - probabilities, probabilities], dim=2)
    assert hidden_dice(two, hidden).item() == pytest.approx(2 / 3, abs=1e-3)
    empty = torch.zeros_like(hidden)
    assert hidden_dice(torch.zeros_like(probabilities), empty).item() == pytest.approx(1)
    assert hidden_dice(torch.ones_like(probabilities), empty).item() == pytest.approx(0, abs=1e-3)
    assert math.isnan(hidden_dice(probabilities, torch.full_like(hidden, IGNORE)))
