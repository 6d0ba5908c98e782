"""LiteMedSAM's image encoder: its equations, the published weights, and what learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from echoplan.errors import EchoPlanError
from echoplan.networks import build_network
from echoplan.networks.complexity import count_parameters
from echoplan.networks.sam.tiny_vit import TinyViT, _WindowAttention

from ..real_data import REAL_DATA

PUBLISHED = REAL_DATA / "weights" / "lite_medsam.pth"
LITE = {"model": "lite_medsam", "encoder": "tiny_vit", "encoder_size": 32}


def attention_by_hand(layer: _WindowAttention, features: Tensor) -> Tensor:
    """The same place by place: softmax over the places of its window, those beyond the border counted as zeros."""
    channels, height, width = features.shape
    side, heads, depth = layer.window, layer.heads, channels // layer.heads
    answer = torch.empty_like(features)
    for row in range(height):
        for column in range(width):
            top, left = row // side * side, column // side * side
            places = [(y, x) for y in range(top, top + side) for x in range(left, left + side)]
            inside = [features[:, y, x] if y < height and x < width else torch.zeros(channels) for y, x in places]
            mixed = layer.qkv(layer.norm(torch.stack(inside))).view(len(places), heads, 3, depth)
            here = places.index((row, column))
            bias = torch.stack([layer.attention_biases[:, abs(y - row) * side + abs(x - column)] for y, x in places])
            weights = (torch.einsum("hd,phd->ph", mixed[here, :, 0], mixed[:, :, 1]) / depth**0.5 + bias).softmax(0)
            answer[:, row, column] = layer.proj(torch.einsum("ph,phd->hd", weights, mixed[:, :, 2]).flatten())
    return answer


@torch.no_grad()
def test_attention_sees_its_window_and_how_far_apart_places_are() -> None:
    torch.manual_seed(0)
    layer = _WindowAttention(8, heads=2, window=3)
    torch.nn.init.normal_(layer.attention_biases)
    torch.nn.init.normal_(layer.norm.bias)  # so that what lies beyond the border is not nothing
    features = torch.randn(8, 4, 5)
    torch.testing.assert_close(layer(features[None])[0], attention_by_hand(layer, features))


def test_lite_medsam_has_its_authors_parameters_and_grid() -> None:
    with torch.device("meta"):
        network = build_network("sam", size=(224, 224), **{**LITE, "encoder_size": 256})
        assert network.image_encoder(torch.empty(1, 3, 256, 256)).shape == (1, 256, 64, 64)
    assert count_parameters(network.image_encoder) == 5_726_740
    assert count_parameters(network) - count_parameters(network.locator) == 9_791_300


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="LiteMedSAM's weights are not here")
def test_the_published_weights_fit() -> None:
    network = build_network("sam", size=(32, 32), pretrained=PUBLISHED, **LITE).eval()
    assert network(torch.randn(1, 1, 1, 32, 32)).isfinite().all()


def test_an_encoder_that_rests_keeps_its_statistics() -> None:
    frames = torch.randn(1, 2, 1, 32, 32)
    boxes = torch.tensor([4.0, 4.0, 20.0, 20.0]).expand(1, 2, 4)
    for part, moves in (("decoder", False), ("all_but_prompt_encoder", True)):
        network = build_network("sam", size=(32, 32), trainable=part, **LITE).train()
        statistics = network.image_encoder.patch_embed["seq"][0].bn.running_mean
        before = statistics.clone()
        network(frames, boxes)
        assert torch.equal(statistics, before) is not moves


def test_an_encoder_of_another_model_is_refused() -> None:
    with pytest.raises(EchoPlanError, match="encoder of lite_medsam cannot be 'vit_b'"):
        build_network("sam", size=(32, 32), model="lite_medsam")
    with torch.device("meta"):
        assert TinyViT()(torch.empty(1, 3, 36, 40)).shape == (1, 256, 9, 10)
