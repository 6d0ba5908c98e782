"""EchoNetTrainer: the recipe of EchoNet-Dynamic's code, and the size of its loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from echoplan.networks import ClipOutput
from echoplan.training.fold import FoldSetup
from echoplan.training.methods import find_method
from echoplan.training.methods.echonet import EchoNetMethod, EchoNetRecipe
from echoplan.training.step import TrainStep
from echoplan.training.trainer import Trainer


def test_the_recipe_is_that_of_the_authors_code() -> None:
    recipe, needs = EchoNetRecipe(), EchoNetMethod.requirements
    assert (recipe.epochs, recipe.optimiser, recipe.momentum, recipe.weight_decay) == (50, "sgd", 0.9, 0.0)
    assert (recipe.augmentation, recipe.pretrained, recipe.drop_last) == ("none", True, True)
    assert (needs.batch_size, needs.learning_rate, needs.paper_size) == (20, 1e-5, 112)
    network = torch.nn.Linear(1, 1)
    step = TrainStep(
        network, recipe, lambda _: network.weight.sum(), learning_rate=1e-5, iterations=4, device=torch.device("cpu")
    )
    group = step.optimizer.param_groups[0]
    assert not group["nesterov"]
    for _ in range(4):
        step({"case": ["a"]})
        assert group["lr"] == 1e-5  # never falls
    assert type(find_method("EchoNetTrainer")) is EchoNetMethod


def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return EchoNetMethod().loss(ClipOutput(logits), {"labels": labels}, epoch=0, record=lambda **_: None)


def test_the_loss_is_the_authors_sum_at_their_size_and_does_not_depend_on_how_a_batch_is_split() -> None:
    torch.manual_seed(0)
    logits = torch.randn(20, 1, 1, 112, 112)
    labels = (torch.rand(20, 1, 112, 112) < 0.3).to(torch.uint8)
    authors = F.binary_cross_entropy_with_logits(logits[:, 0, 0], labels[:, 0].float(), reduction="sum")
    whole = loss(logits, labels)
    torch.testing.assert_close(whole, authors)
    halves = [loss(logits[i::2], labels[i::2]) for i in (0, 1)]
    torch.testing.assert_close(sum(halves) / 2, whole)
    labels[5:] = 255
    few = loss(logits, labels)
    torch.testing.assert_close(few, loss(logits[:5], labels[:5]))


def test_it_fits_the_toy_frames_standardised_by_the_training_set(frame_setup: FoldSetup) -> None:
    # four frames bear less than twenty
    recipe = EchoNetRecipe(epochs=1, batch_size=4, learning_rate=1e-6, pretrained=False)
    trainer = Trainer(EchoNetMethod(recipe), frame_setup, seed=1)
    grey = np.concatenate([frame_setup.store.frames(case).ravel() for case in frame_setup.train])
    found = trainer.network.grey_mean.item(), trainer.network.grey_sd.item()
    assert found == pytest.approx((grey.mean(), grey.std()), rel=1e-5)
    assert len(trainer.training_batches) == 1  # six frames: two do not fill a batch
    trainer.on_epoch_start(0)
    batch = next(iter(trainer.training_batches.epoch(0)))
    frames = frame_setup.store.frames(batch["case"][0])
    assert any(np.array_equal(batch["clip"][0, 0, 0], frame) for frame in frames)  # grey levels as they are
    losses = [trainer.step(batch) for _ in range(5)]
    assert losses[-1] < 0.7 * losses[0]


def test_one_frame_of_several_structures_is_a_batch(frame_setup: FoldSetup) -> None:
    several = replace(frame_setup.description, labels={"background": 0, "LV": 1, "LA": 2})
    recipe = EchoNetRecipe(epochs=1, batch_size=1, learning_rate=1e-5, pretrained=False)
    trainer = Trainer(EchoNetMethod(recipe), replace(frame_setup, description=several), seed=1)
    trainer.on_epoch_start(0)
    assert trainer.train_step(next(iter(trainer.training_batches.epoch(0)))) > 0
    with torch.no_grad():
        assert trainer.network.eval()(torch.randn(1, 2, 1, 32, 32)).shape == (1, 2, 3, 32, 32)
