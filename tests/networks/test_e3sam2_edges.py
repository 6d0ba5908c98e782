from __future__ import annotations

import pytest
import torch

from echoplan.networks.complexity import count_parameters
from echoplan.networks.e3sam2.edges import EdgeHead, sobel


def _disc(size: int, radius: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A disc's mask ``(1, 1, size, size)``, and each pixel's distance from its centre."""
    along = torch.arange(size) - (size - 1) / 2
    distance = torch.hypot(along[:, None], along[None, :])
    return (distance < radius).float().view(1, 1, size, size), distance


def test_sobel_of_ramps() -> None:
    columns = torch.arange(6.0).expand(1, 1, 5, 6)
    rows = torch.arange(5.0)[:, None].expand(1, 1, 5, 6)
    along_x, along_y = sobel(torch.cat([2 * columns, rows], dim=1))
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    for gradient, expected in ((along_x, (2.0, 0.0)), (along_y, (0.0, 1.0))):
        for channel, value in enumerate(expected):
            torch.testing.assert_close(gradient[inner][:, channel], torch.full((1, 3, 4), value))


def test_sobel_is_the_filter_of_that_name() -> None:
    maps = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64) / 8
    for gradient, weights in zip(sobel(maps), (kernel, kernel.T), strict=True):
        expected = torch.nn.functional.conv2d(maps.flatten(0, 1).unsqueeze(1), weights.view(1, 1, 3, 3))
        torch.testing.assert_close(gradient[..., 1:-1, 1:-1], expected.view(2, 3, 5, 4))


def test_sobel_of_a_disc_is_a_ring_of_its_radius() -> None:
    disc, distance = _disc(64, radius=20)
    along_x, along_y = sobel(disc)
    ring = torch.hypot(along_x, along_y)[0, 0] > 0
    assert 18 < distance[ring].min() < 20 < distance[ring].max() < 22
    assert ring[(distance > 19.3) & (distance < 20.7)].all()
    # It points inwards: along the negative radius.
    assert (along_x[0, 0, 32, 32:] <= 0).all()
    assert along_x[0, 0, 32, 32:].sum() == pytest.approx(-1)


def test_the_images_border_is_no_edge() -> None:
    for gradient in sobel(torch.full((1, 2, 5, 5), 3.0)):
        assert (gradient == 0).all()


def test_edge_head_is_as_large_as_the_paper_has_it() -> None:
    with torch.device("meta"):
        head = EdgeHead()
        logits = head(torch.empty(2, 96, 64, 64), torch.empty(2, 384, 16, 16))
    assert logits.shape == (2, 1, 64, 64)
    assert round(count_parameters(head) / 1e6, 2) == 0.14


def test_edge_head_uses_gradients_of_both_scales_and_nothing_else() -> None:
    torch.manual_seed(0)
    head = EdgeHead((4, 6), width=8)
    fine, coarse = torch.randn(2, 4, 16, 16), torch.randn(2, 6, 4, 4)
    logits = head(fine, coarse)
    assert logits.shape == (2, 1, 16, 16)
    # What is the same everywhere has no gradient and cannot matter.
    torch.testing.assert_close(head(fine + 3, coarse - 2), logits, rtol=1e-4, atol=1e-4)
    assert (head(fine.flip(3), coarse) - logits).abs().max() > 0.01
    assert (head(fine, coarse.flip(3)) - logits).abs().max() > 0.01


def test_edge_head_learns_a_disc() -> None:
    torch.manual_seed(0)
    disc, _ = _disc(16, radius=5)
    target = (torch.hypot(*sobel(disc)) > 0).float()
    head = EdgeHead((2, 2), width=8)
    fine = torch.cat([disc, torch.randn(1, 1, 16, 16)], dim=1)
    coarse = torch.nn.functional.avg_pool2d(fine, 4)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(40):
        optimiser.zero_grad()
        logits = head(fine, coarse)
        torch.nn.functional.binary_cross_entropy_with_logits(logits, target).backward()
        optimiser.step()
    assert ((head(fine, coarse) > 0) == target.bool()).float().mean() > 0.97
