from __future__ import annotations

import pytest
import torch
from torch import nn

from echoplan.networks.complexity import count_gmac, count_parameters


class _Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3, padding=1)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return self.convolution(clip.flatten(0, 1))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_counts_by_hand(device: str) -> None:
    network = _Tiny().to(device)
    assert count_parameters(network) == 4 * 9 + 4 + 6
    assert count_parameters(network, trainable_only=True) == 4 * 9 + 4
    assert count_gmac(network, (2, 3, 1, 8, 8)) * 1e9 == pytest.approx(6 * 8 * 8 * 4 * 9)
    assert network.training
    assert network.convolution.weight.requires_grad
    assert not network.frozen.weight.requires_grad
