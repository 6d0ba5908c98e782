import pytest
import torch
from torch import nn

from echoplan.errors import EchoPlanError
from echoplan.experiment_planning import MemoryModel, measure_memory
from echoplan.training.recipe import Recipe
from echoplan.training.trainers import trainer_registry

GB = 1024**3


def trainer_of(network, **recipe):
    class Made:
        @staticmethod
        def recipe_class():
            return Recipe(**recipe)

        @staticmethod
        def build_network(*, size, classes, settings=None):
            return network()

    return Made


class TwoConvolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.second = nn.Conv2d(8, 1, 1, bias=False)

    def forward(self, clip):
        frames = clip.flatten(0, 1)
        return self.second(torch.relu(self.first(frames))).unflatten(0, clip.shape[:2])


def test_float32_equals_the_count_by_hand():
    model = measure_memory(
        trainer_of(TwoConvolutions, optimiser="sgd", precision="float32"), size=(64, 32), frames=3, classes=1
    )
    pixels = 64 * 32 * 3
    # Kept: the input, relu's output (8 channels; the second convolution's input is the same tensor), the logits.
    assert model.per_sample_gb * GB == pytest.approx(4 * pixels * (1 + 8 + 1))
    weights = 8 * 9 + 8
    assert model.fixed_gb * GB == pytest.approx(4 * weights * (1 + 1 + 1))
    assert model.precision == "float32"


def test_mixed_precision_halves_the_activations_and_copies_the_weights():
    model = measure_memory(trainer_of(TwoConvolutions, optimiser="adam"), size=(64, 32), frames=3, classes=1)
    pixels = 64 * 32 * 3
    # The float32 input and its 16-bit copy, relu's output and the logits in 16 bits.
    assert model.per_sample_gb * GB == pytest.approx(pixels * (4 + 2 + 2 * 8 + 2))
    weights = 8 * 9 + 8
    assert model.fixed_gb * GB == pytest.approx(weights * (4 * (1 + 1 + 2) + 2))


def test_frozen_weights_need_neither_gradient_nor_state():
    class Frozen(TwoConvolutions):
        def __init__(self):
            super().__init__()
            self.first.requires_grad_(False)

    model = measure_memory(trainer_of(Frozen, precision="float32"), size=(64, 64), frames=1, classes=1)
    assert model.fixed_gb * GB == pytest.approx(4 * (72 + 8 * 4))


def test_agrees_with_a_real_forward_pass():
    """The same count on the CPU, with real tensors: nothing is lost on the meta device."""
    trainer = trainer_registry()["UNetTrainer"]
    settings = {"base_features": 4, "precision": "float32"}
    model = measure_memory(trainer, size=(64, 64), frames=1, classes=1, settings=settings)
    network = trainer.build_network(
        size=(64, 64), classes=1, settings=trainer.recipe_class().with_settings(settings).to_dict()
    ).train()
    own = {parameter.data_ptr() for parameter in network.parameters()}
    saved = {}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(torch.zeros(2, 1, 1, 64, 64))
    real = sum(storage.nbytes() for storage in saved.values())
    assert model.per_sample_gb * GB * 2 == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize("name", list(trainer_registry()))
def test_every_trainer_can_be_simulated(name):
    trainer = trainer_registry()[name]
    side = max(64, trainer.needs.size_multiple)
    model = measure_memory(trainer, size=(side, side), frames=min(2, trainer.needs.frames), classes=1)
    assert 0 < model.per_sample_gb < 10 and 0 < model.fixed_gb < 10


def test_a_network_that_looks_at_values_is_a_clear_error():
    class Looks(TwoConvolutions):
        def forward(self, clip):
            return super().forward(clip) if clip.sum().item() > 0 else clip

    with pytest.raises(EchoPlanError, match=r"meta device: no \.item"):
        measure_memory(trainer_of(Looks), size=(32, 32), frames=1, classes=1)


def test_the_largest_batch_leaves_a_tenth_free():
    model = MemoryModel(fixed_gb=0.4, per_sample_gb=0.5)  # 1.0 GB and 0.5 a sample
    assert model.gb(4) == pytest.approx(3.0)
    assert model.largest_batch(4.0, at_most=32) == 5  # 3.5 of 3.6
    assert model.largest_batch(4.0, at_most=3) == 3
    assert model.largest_batch(1.5, at_most=3) == 0
