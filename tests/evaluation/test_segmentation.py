from __future__ import annotations

import numpy as np
import pytest

from echoplan.errors import EchoPlanError
from echoplan.evaluation import segmentation_metrics


def brute_force(prediction, reference, spacing):
    """The definitions written out pixel by pixel: no SciPy, no shortcuts."""

    def surface(mask):
        points = []
        rows, columns = mask.shape
        for r, c in zip(*np.nonzero(mask), strict=True):
            neighbours = [(r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)]
            if any(not (0 <= i < rows and 0 <= j < columns) or not mask[i, j] for i, j in neighbours):
                points.append((r * spacing[0], c * spacing[1]))
        return np.array(points)

    first, second = surface(prediction), surface(reference)
    distance = np.sqrt(((first[:, None] - second[None]) ** 2).sum(axis=2))
    forth, back = distance.min(axis=1), distance.min(axis=0)
    overlap, union = (prediction & reference).sum(), (prediction | reference).sum()
    return {
        "dice": 2 * overlap / (prediction.sum() + reference.sum()),
        "iou": overlap / union,
        "hd": max(forth.max(), back.max()),
        "hd95": np.percentile(np.concatenate([forth, back]), 95),
        "assd": (forth.mean() + back.mean()) / 2,
    }


def blob(random, shape):
    y, x = np.mgrid[: shape[0], : shape[1]]
    mask = np.zeros(shape, bool)
    for _ in range(random.integers(1, 4)):
        centre, radius = random.uniform(0, 1, 2) * shape, random.uniform(2, 9, 2)
        mask |= ((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 <= 1
    mask[tuple((random.uniform(0, 1, 2) * shape).astype(int))] = True
    return mask


@pytest.mark.parametrize("seed", range(25))
def test_equals_the_definitions_on_random_shapes(seed):
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(12, 40, 2))
    spacing = tuple(random.uniform(0.2, 2.0, 2))
    prediction, reference = blob(random, shape), blob(random, shape)
    got = segmentation_metrics(prediction, reference, spacing)
    assert got == pytest.approx(brute_force(prediction, reference, spacing), rel=1e-9, abs=1e-12)
    in_pixels = segmentation_metrics(prediction.astype(np.uint8) * 7, reference)
    assert in_pixels == pytest.approx(brute_force(prediction, reference, (1, 1)), rel=1e-9, abs=1e-12)


def test_full_masks_have_the_image_border_as_surface():
    full, inner = np.ones((20, 30), bool), np.zeros((20, 30), bool)
    inner[5:15, 5:25] = True
    assert segmentation_metrics(full, full, (0.3, 0.7)) == {"dice": 1, "iou": 1, "hd": 0, "hd95": 0, "assd": 0}
    assert segmentation_metrics(full, inner, (0.3, 0.7)) == pytest.approx(brute_force(full, inner, (0.3, 0.7)))


def test_empty_masks_are_defined():
    empty, some = np.zeros((30, 40), np.uint8), np.zeros((30, 40), np.uint8)
    some[4:9, 5:11] = 1
    assert segmentation_metrics(empty, empty) == {"dice": 1, "iou": 1, "hd": 0, "hd95": 0, "assd": 0}
    for pair in ((empty, some), (some, empty)):
        assert segmentation_metrics(*pair) == {"dice": 0, "iou": 0, "hd": 50, "hd95": 50, "assd": 50}
        assert segmentation_metrics(*pair, (2.0, 2.0))["hd95"] == pytest.approx(100)


def test_is_symmetric():
    random = np.random.default_rng(3)
    first, second = blob(random, (25, 25)), blob(random, (25, 25))
    assert segmentation_metrics(first, second) == pytest.approx(segmentation_metrics(second, first))


@pytest.mark.parametrize(
    ("prediction", "reference", "spacing"),
    [
        (np.ones((4, 5)), np.ones((5, 4)), None),
        (np.ones((2, 4, 5)), np.ones((2, 4, 5)), None),
        (np.ones((4, 5)), np.ones((4, 5)), (0.0, 1.0)),
        (np.ones((4, 5)), np.ones((4, 5)), (1.0, float("nan"))),
        (np.ones((4, 5)), np.ones((4, 5)), (1.0, 1.0, 1.0)),
    ],
)
def test_unfit_input_is_named(prediction, reference, spacing):
    with pytest.raises(EchoPlanError):
        segmentation_metrics(prediction, reference, spacing)
