from dataclasses import dataclass

import pytest
import torch
from torch import nn

from echoplan.errors import EchoPlanError
from echoplan.experiment_planning import MemoryModel, measure_memory
from echoplan.experiment_planning.memory import CONTEXT_GB, peak_bytes
from echoplan.training.methods import Method, find_method, method_registry
from echoplan.training.recipe import MethodRequirements, Recipe

GB = 1024**3


def method_of(network, **recipe):
    """A class of methods around a network, with the sum of the logits as its loss."""

    @dataclass(frozen=True)
    class Made(Recipe):
        optimiser: str = recipe.get("optimiser", "sgd")
        momentum: float = recipe.get("momentum", 0.9)
        precision: str = recipe.get("precision", "auto")

    class MadeMethod(Method):
        requirements = MethodRequirements(batch_size=4, learning_rate=1e-3)
        recipe_class = Made

        def build_network(self, *, size, classes, pretrained=False):
            return network()

        def loss(self, output, batch, **_):
            return output.logits.sum()

    return MadeMethod


class TwoConvolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.second = nn.Conv2d(8, 1, 1, bias=False)

    def forward(self, clip):
        frames = clip.flatten(0, 1)
        return self.second(torch.relu(self.first(frames))).unflatten(0, clip.shape[:2])


def test_float32_equals_the_count_by_hand():
    model = measure_memory(method_of(TwoConvolutions, precision="float32")(), size=(64, 32), frames=4, classes=1)
    pixels = 64 * 32 * 4
    # At the peak, in the backward pass: clip, labels, relu's output, its gradient, and that of the first convolution.
    assert model.per_sample_gb * GB == pytest.approx(pixels * (4 + 1 + 4 * 8 * 3), rel=0.05)
    assert model.precision == "float32"


def test_frozen_weights_need_neither_gradient_nor_state():
    class Large(nn.Module):
        def __init__(self, frozen):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1000, 1000), requires_grad=not frozen)
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, clip):
            return clip * self.scale * self.weight[0, 0]

    def fixed(frozen, optimiser):
        method = method_of(lambda: Large(frozen), precision="float32", optimiser=optimiser)()
        return measure_memory(method, size=(32, 32), frames=1, classes=1).fixed_gb * GB / 4e6

    assert fixed(True, "adam") == pytest.approx(1, abs=0.1)
    # Weights, gradients, two moments; Adam's step itself takes two tensors more of that size for a moment.
    assert 4 <= fixed(False, "adam") <= 6.1
    assert 3 <= fixed(False, "sgd") <= 4.1


ONE_OF_EACH = {type(method): name for name, method in reversed(method_registry().items())}  # variants share a network


SMALL = {
    "UNetTrainer": {"base_features": 8},
    "UNet2DtTrainer": {"base_features": 8},
    "SAMTrainer": {"encoder_size": 64},
    "LiteMedSAMTrainer": {"encoder_size": 64},
    "EchoForgeTrainer": {"channels": 32, "query_layers": 1, "fusion_layers": 1},
}


@pytest.mark.parametrize("name", ONE_OF_EACH.values())
def test_the_forecast_agrees_with_real_tensors_with_and_without_company(name, request):
    """The same step with real tensors on the CPU, followed by the same tracker."""
    # In a slim ResUNet what convolutions need on a processor besides tensors' own bytes would weigh.
    request.getfixturevalue("tiny_sam" if name in ("ResUNetTrainer", "LiteMedSAMTrainer") else "slim_networks")
    method = find_method(name).with_settings({"precision": "float32", **SMALL.get(name, {})})
    options = {"size": (64, 64), "frames": min(2, method.requirements.frames), "classes": 1}
    model = measure_memory(method, **options)
    for batch in (1, 3):
        real = peak_bytes(method, batch_size=batch, device="cpu", **options) / GB
        assert model.gb(batch) - CONTEXT_GB == pytest.approx(real, rel=0.1), batch


def test_mixed_precision_takes_less():
    methods = (find_method("UNetTrainer").with_settings({"precision": precision}) for precision in ("float32", "auto"))
    full, mixed = (measure_memory(method, size=(128, 128), frames=1, classes=1) for method in methods)
    assert mixed.precision == "mixed"
    assert 0.4 < mixed.per_sample_gb / full.per_sample_gb < 0.8


def test_attention_is_counted_without_its_map():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, clip):
            tokens = clip.flatten(2).unsqueeze(-1) * self.weight  # (B, T, N, 8)
            out = torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
            return out.mean(-1).view_as(clip)

    def per_sample(side):
        method = method_of(Attends, precision="float32")()
        return measure_memory(method, size=(side, side), frames=1, classes=1).per_sample_gb

    assert per_sample(64) / per_sample(32) == pytest.approx(4, rel=0.2)  # with the map it would be 16


def test_a_network_that_looks_at_values_is_a_clear_error():
    class Looks(TwoConvolutions):
        def forward(self, clip):
            return super().forward(clip) if clip.sum().item() > 0 else clip

    with pytest.raises(EchoPlanError, match=r"meta device: no \.item"):
        measure_memory(method_of(Looks)(), size=(32, 32), frames=1, classes=1)


def test_the_largest_batch_leaves_a_tenth_free():
    model = MemoryModel(fixed_gb=0.4, per_sample_gb=0.5)  # 1.0 GB and 0.5 a sample
    assert model.gb(4) == pytest.approx(3.0)
    assert model.largest_batch(4.0, at_most=32) == 5  # 3.5 of 3.6
    assert model.largest_batch(4.0, at_most=3) == 3
    assert model.largest_batch(1.5, at_most=3) == 0
