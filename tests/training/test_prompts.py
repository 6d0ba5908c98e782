from __future__ import annotations

import numpy as np
import pytest
import torch

from echoplan.training.prompts import (
    BOX_REACH,
    box_of,
    boxes_of_labels,
    jitter_boxes,
    jittered_box,
    move_boxes,
    widen_boxes,
)


def masks() -> torch.Tensor:
    """Labels (2, 2, 20, 30): a rectangle, two pixels apart, nothing labelled, and an empty labelled frame."""
    labels = torch.zeros(2, 2, 20, 30, dtype=torch.uint8)
    labels[0, 0, 4:9, 7:18] = 1
    labels[0, 1, 2, 29] = labels[0, 1, 19, 3] = 1
    labels[1, 0] = 255
    return labels


def test_a_box_has_the_centres_of_the_outermost_pixels() -> None:
    labels = masks()
    assert box_of(labels[0, 0].numpy() == 1) == (7, 4, 17, 8)
    assert box_of(labels[0, 1].numpy() == 1) == (3, 2, 29, 19)
    with pytest.raises(ValueError, match="empty"):
        box_of(labels[1, 1].numpy() == 1)


def test_the_boxes_of_a_batch_are_those_of_its_masks_and_nan_where_nothing_shows() -> None:
    labels = masks()
    boxes = boxes_of_labels(labels)
    assert boxes[0].tolist() == [list(box_of(frame.numpy() == 1)) for frame in labels[0]]
    assert boxes[1].isnan().all() and not boxes[0].isnan().any()
    labels[labels == 1] = 3
    assert torch.equal(boxes_of_labels(labels, label=3)[0], boxes[0])
    assert boxes_of_labels(masks().to("meta")).shape == (2, 2, 4)


def test_jitter_moves_every_side_by_its_share_and_stays_inside() -> None:
    mask = masks()[0, 0].numpy() == 1
    generator = np.random.default_rng(0)
    found = np.array([jittered_box(mask, generator, reach=0.2) for _ in range(400)])
    moves = found - np.array(box_of(mask))
    limits = np.array([10, 4, 10, 4]) * 0.2
    assert (np.abs(moves) <= limits + 1e-9).all()
    assert (np.abs(moves).max(axis=0) > 0.95 * limits).all()  # the whole reach is used
    assert np.abs(moves.mean(axis=0) / limits).max() < 0.1  # and no side is drawn to one direction
    assert np.abs(np.corrcoef(moves.T) - np.eye(4)).max() < 0.2  # each by a draw of its own
    assert jittered_box(mask, np.random.default_rng(1)) == jittered_box(mask, np.random.default_rng(1))
    assert jittered_box(mask, generator, reach=0.0) == box_of(mask)
    whole = np.ones((20, 30), bool)
    boxes = np.array([jittered_box(whole, generator, reach=0.3) for _ in range(50)])
    assert boxes.min() >= 0 and boxes[:, [0, 2]].max() <= 29 and boxes[:, [1, 3]].max() <= 19


def test_widened_boxes_reach_outwards_within_the_frame() -> None:
    boxes = boxes_of_labels(masks())
    torch.manual_seed(3)
    moved = widen_boxes(boxes, size=(20, 30), reach=0.1) - boxes
    assert moved[1].isnan().all()
    assert (moved[0, 0, :2] < 0).all() and (moved[0, 0, 2:] > 0).all() and (moved[0, 0].abs() <= 3).all()
    assert moved[0, 1, 2:].tolist() == [0, 0]  # at the border already


def test_jitter_of_a_batch_follows_torchs_seed_and_leaves_nan() -> None:
    boxes = boxes_of_labels(masks())
    torch.manual_seed(3)
    first = jitter_boxes(boxes, size=(20, 30))
    torch.manual_seed(3)
    assert torch.equal(jitter_boxes(boxes, size=(20, 30))[0], first[0])
    assert first[1].isnan().all()
    assert ((first - boxes)[0, 0].abs() <= BOX_REACH * torch.tensor([10.0, 4.0, 10.0, 4.0])).all()
    assert not torch.equal(first[0], boxes[0])
    for reach in (-0.1, 0.5):
        with pytest.raises(ValueError, match="reach"):
            move_boxes(boxes, torch.zeros_like(boxes), size=(20, 30), reach=reach)
