"""ResUNetTrainer: the recipe, the network's size, and that it learns."""

from __future__ import annotations

from dataclasses import replace

import torch

from echoplan.networks import build_network
from echoplan.networks.complexity import count_parameters
from echoplan.training.fold import FoldSetup
from echoplan.training.methods import find_method
from echoplan.training.trainer import Trainer


def test_the_recipe_is_that_of_the_papers_sam_without_boxes() -> None:
    recipe, needs = find_method("ResUNetTrainer").recipe, find_method("ResUNetTrainer").requirements
    sam, same = find_method("SAMTrainer").recipe, ("optimiser", "final_learning_rate", "poly_power", "augmentation")
    assert recipe.epochs == 23 and all(getattr(recipe, name) == getattr(sam, name) for name in same)
    assert (needs.batch_size, needs.learning_rate, needs.paper_size) == (8, 2e-5, 112)


def test_frames_of_any_size_and_the_parameters_of_a_resnet_18_u_net() -> None:
    network = build_network("resunet", size=(112, 112), classes=3).eval()
    head = 16 * 9 * 2 + 2  # of two classes more
    assert count_parameters(network) - head == 14_321_937  # as the usual one has with a grey channel
    with torch.inference_mode():
        clip = torch.randn(1, 2, 1, 50, 70)
        logits = network(clip)
        assert logits.shape == (1, 2, 3, 50, 70)
        torch.testing.assert_close(network(clip[:, 1:]), logits[:, 1:], atol=1e-5, rtol=1e-5)


def test_it_learns_the_toy_frames(frame_setup: FoldSetup) -> None:
    method = find_method("ResUNetTrainer").with_settings({"pretrained": False, "epochs": 20, "learning_rate": 1e-3})
    trainer = Trainer(method, replace(frame_setup, fold=1), seed=1)
    trainer.on_epoch_start(0)
    batch = next(iter(trainer.training_batches.epoch(0)))
    losses = [trainer.step(batch) for _ in range(10)]
    assert losses[-1] < 0.7 * losses[0]
