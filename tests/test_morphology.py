"""The same pixels as scipy's and skimage's morphology."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import isotropic_closing, isotropic_dilation, isotropic_erosion, isotropic_opening

from echoplan.morphology import closed_and_opened, dilated, eroded, opened, spread


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 255, (61, 44)).astype(np.uint8)


@pytest.fixture
def mask() -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(4).normal(size=(70, 93)), 2.5) > 0.05


@pytest.mark.parametrize("side", [1, 3, 4, 5, 8])
def test_a_grey_opening_is_scipys(image: np.ndarray, side: int) -> None:
    assert np.array_equal(opened(image, side), ndimage.grey_opening(image, (side, side), mode="nearest"))


@pytest.mark.parametrize("reach", [1, 3, 9])
def test_a_square_grows_as_scipys(image: np.ndarray, reach: int) -> None:
    few = image > 250
    assert np.array_equal(spread(few, reach), ndimage.maximum_filter(few, 2 * reach + 1))


@pytest.mark.parametrize("radius", [1, 2, 5, 6, 13])
def test_a_disc_grows_and_shrinks_as_skimages(mask: np.ndarray, radius: int) -> None:
    for whole in (mask, mask.T, np.zeros_like(mask), np.ones_like(mask)):
        assert np.array_equal(dilated(whole, radius), isotropic_dilation(whole, radius) & whole.any())
        assert np.array_equal(eroded(whole, radius), isotropic_erosion(whole, radius) | whole.all())


@pytest.mark.parametrize(("closing", "opening"), [(1, 1), (5, 3), (2, 4)])
def test_closing_and_opening_are_skimages(mask: np.ndarray, closing: int, opening: int) -> None:
    expected = mask
    for operation, radius in ((isotropic_closing, closing), (isotropic_opening, opening)):
        border = radius + 1
        expected = operation(np.pad(expected, border, mode="edge"), radius)[border:-border, border:-border]
    found = closed_and_opened(mask, closing, opening)
    assert np.array_equal(found, expected)
    assert 0 < found.sum() < found.size
