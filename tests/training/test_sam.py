"""SAMTrainer and MedSAMTrainer: the recipe, the boxes of training, the loss, and a training from end to end."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from echoplan.errors import EchoPlanError
from echoplan.networks import ClipOutput
from echoplan.networks.complexity import count_parameters
from echoplan.networks.sam.model import SAM
from echoplan.training.features import with_features
from echoplan.training.fold import FoldSetup
from echoplan.training.methods import find_method
from echoplan.training.methods.sam import SAMMethod, SAMRecipe
from echoplan.training.metrics import read_metrics
from echoplan.training.prompts import boxes_of_labels
from echoplan.training.step import TrainStep, poly_rate
from echoplan.training.trainer import Trainer
from echoplan.training.validation import validate_fold


def make_trainer(setup: FoldSetup, **settings: object) -> Trainer:
    small = {"epochs": 2, "pretrained": False, "encoder_size": 32}
    folder = setup.model_folder.with_name("SAMTrainer__EchoPlans__frame")
    method = find_method("SAMTrainer").with_settings({**small, **settings})
    return Trainer(method, replace(setup, model_folder=folder), seed=1)


def started(setup: FoldSetup, **settings: object) -> tuple[Trainer, dict[str, Any]]:
    trainer = make_trainer(setup, **settings)
    trainer.on_epoch_start(0)
    return trainer, next(iter(trainer.training_batches.epoch(0)))


def test_the_recipe_is_the_papers() -> None:
    recipe, needs = SAMRecipe(), SAMMethod.requirements
    assert (recipe.epochs, recipe.optimiser, recipe.weight_decay, recipe.augmentation) == (27, "adam", 0.0, "none")
    assert (needs.learning_rate, recipe.final_learning_rate, needs.batch_size) == (2e-5, 3e-6, 8)
    assert (needs.paper_size, recipe.network.encoder_size, recipe.network.encoder) == (112, 1024, "vit_b")
    assert needs.paper_size % needs.size_multiple == 0 and not needs.multi_structure
    assert recipe.network_settings().trainable == "auto"  # the decoder
    assert SAMRecipe(pretrained=False).network_settings().trainable == "all"
    chosen = SAMRecipe().with_settings({"pretrained": False, "trainable": "all_but_prompt_encoder"})
    assert chosen.network_settings().trainable == "all_but_prompt_encoder"


def test_the_recipe_at_1024_is_medsams_own() -> None:
    recipe = find_method("MedSAM1024Trainer").recipe
    assert (recipe.epochs, recipe.optimiser, recipe.learning_rate, recipe.weight_decay) == (70, "adamw", 1e-4, 0.01)
    assert (recipe.batch_size, recipe.training_boxes, recipe.network.model) == (2, "widened", "medsam")
    assert recipe.network_settings().trainable == "all_but_prompt_encoder"
    assert poly_rate(1e-4, 5, 10, recipe.poly_power, end=recipe.final_learning_rate) == 1e-4  # never falls


@pytest.mark.parametrize(("name", "model"), [("SAMTrainer", "sam"), ("MedSAMTrainer", "medsam")])
def test_the_network_is_sam_vit_b(name: str, model: str) -> None:
    """MedSAM's authors count 93,735,472 parameters in it."""
    with torch.device("meta"):
        network = find_method(name).build_network(size=(112, 112), classes=1)
    assert network.model == model and network.encoder_size == 1024
    assert count_parameters(network) - count_parameters(network.locator) == 93_735_472


def test_the_rate_falls_in_a_straight_line_to_its_end() -> None:
    rates = [poly_rate(2e-5, step, 101, 1.0, end=3e-6) for step in range(101)]
    assert rates[0] == pytest.approx(2e-5) and rates[-1] == pytest.approx(3e-6)
    np.testing.assert_allclose(np.diff(rates), -1.7e-7, rtol=1e-9)
    assert poly_rate(2e-5, 0, 1, 1.0, end=3e-6) == pytest.approx(2e-5)  # a training of one step


@pytest.mark.usefixtures("tiny_sam")
def test_the_locator_has_a_rate_of_its_own() -> None:
    method = SAMMethod().with_settings({"pretrained": False, "encoder_size": 32})
    network = method.build_network(size=(32, 32), classes=1)
    step = TrainStep(
        network,
        method.recipe,
        lambda _: sum(p.sum() for p in network.parameters() if p.requires_grad),
        learning_rate=2e-5,
        iterations=11,
        device=torch.device("cpu"),
    )
    rates = []
    for _ in range(11):
        step({"case": ["a"]})
        rates.append([group["lr"] for group in step.optimizer.param_groups])
    assert rates[0] == pytest.approx([2e-5, 1e-3]) and rates[-1] == pytest.approx([3e-6, 1.5e-4])
    assert step.rate == pytest.approx(3e-6)
    groups = [{id(p) for p in group["params"]} for group in step.optimizer.param_groups]
    assert groups[1] == {id(p) for p in network.locator.parameters()}
    assert not groups[0] & groups[1] and len(groups[0] | groups[1]) == len(step.parameters)


@pytest.mark.usefixtures("tiny_sam")
@pytest.mark.parametrize("kind", ["truth", "jittered", "widened", "automatic"])
def test_training_boxes(frame_setup: FoldSetup, kind: str) -> None:
    trainer, batch = started(frame_setup, training_boxes=kind, box_reach=0.2)
    batch["labels"][0] = 0  # one frame shows nothing
    told: list[tuple[Tensor, ...]] = []
    trainer.model = lambda *arguments: told.append(arguments) or trainer.network(*arguments)
    torch.manual_seed(5)
    trainer.loss(trainer.on_device(batch, training=True)).backward()
    truth = boxes_of_labels(batch["labels"])
    if kind == "automatic":
        assert told[0][1] is None
        return
    boxes = told[0][1]
    assert boxes[0].isnan().all() and torch.equal(boxes.isnan(), truth.isnan())
    moves = (boxes - truth)[1:].abs()
    if kind == "truth":
        assert (moves == 0).all()
    elif kind == "widened":
        assert (moves <= 32 * 20 / 1024).all() and (moves > 0).any()
    else:
        extent = (truth[1:, :, 2:] - truth[1:, :, :2]).repeat(1, 1, 2)
        assert (moves <= 0.2 * extent + 1e-5).all() and (moves > 0).all()


@pytest.mark.usefixtures("tiny_sam")
def test_the_loss_is_dice_and_cross_entropy_of_mask_and_locator() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 1, 1, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    labels[0, 0, 2:6, 3:7] = 1
    found = torch.randn(2, 1, 1, 4, 4)

    def by_hand(logits: Tensor, truth: Tensor) -> Tensor:
        p, g = logits.sigmoid().flatten(1), truth.float().flatten(1)
        dice = (2 * (p * g).sum(1) + 1) / ((p * p + g * g).sum(1) + 1)
        return (1 - dice).mean() - (g * p.log() + (1 - g) * (1 - p).log()).mean()

    expected = by_hand(logits, labels) + by_hand(found, labels[..., 1::2, 1::2])
    output = ClipOutput(logits, {"locator": found})

    def loss(labels: Tensor) -> Tensor:
        return SAMMethod().loss(output, {"labels": labels}, epoch=0, record=lambda **_: None)

    torch.testing.assert_close(loss(labels), expected, atol=1e-5, rtol=1e-5)
    assert loss(torch.full_like(labels, 255)) == 0
    # At the encoder's size: SAM's square, without the rows that pad frames of 4 x 8 to it.
    output.auxiliary["masks"] = torch.randn(2, 1, 1, 8, 8)
    method = SAMMethod().with_settings({"loss_size": "encoder", "encoder_size": 32})
    whole = torch.nn.functional.interpolate(output.auxiliary["masks"][:, 0], (32, 32), mode="bilinear")[:, None, :, :16]
    enlarged = labels[:, :, 2:6].repeat_interleave(4, 2).repeat_interleave(4, 3)
    expected = by_hand(whole, enlarged) + by_hand(found, labels[:, :, 2:6][..., [0, 1, 2, 3], 1::2])
    result = method.loss(output, {"labels": labels[:, :, 2:6]}, epoch=0, record=lambda **_: None)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("tiny_sam")
def test_one_command_trains_both_stages_and_validation_needs_no_box(
    frame_setup: FoldSetup, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(
        frame_setup,
        epochs=2,
        iterations_per_epoch=8,
        precision="float32",
        learning_rate=1e-3,
        final_learning_rate=1e-4,
        encoder_size=64,
    )
    with caplog.at_level("INFO"):
        trainer.run_training()
    metrics = read_metrics(trainer.setup.folder)
    assert metrics[-1]["loss_locator"] < 0.8 * metrics[0]["loss_locator"]
    assert metrics[-1]["loss_mask"] < 0.7 * metrics[0]["loss_mask"]
    assert metrics[-1]["val_dice"] > 0.8
    assert "parameters that learn: " in caplog.text and "image_encoder" in caplog.text
    summary = validate_fold(trainer.network.eval(), trainer.setup)  # from frames alone
    assert summary["mean"]["LV"]["all"]["dice"]["mean"] > 0.8


@pytest.mark.usefixtures("tiny_sam")
def test_the_frozen_encoder_sees_a_frame_once_and_all_else_is_the_same(
    frame_setup: FoldSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    own = SAM.embed
    monkeypatch.setattr(SAM, "embed", lambda network, frames: encoded.append(len(frames)) or own(network, frames))
    settings = {"trainable": "decoder", "precision": "float32"}

    def kept() -> list[Path]:
        return sorted((frame_setup.preprocessed / "features").glob("*/*.npy"))

    def trained(**more: object) -> list[float]:
        shutil.rmtree(frame_setup.model_folder.parent, ignore_errors=True)
        encoded.clear()
        trainer = make_trainer(frame_setup, **settings, **more)
        trainer.run_training()
        return [metrics[name] for metrics in read_metrics(trainer.setup.folder) for name in ("train_loss", "val_dice")]

    def passes(**more: object) -> int:
        """Through the encoder, for the training's first batch of four frames and the validation's of two."""
        encoded.clear()
        trainer = make_trainer(frame_setup, **settings, **more)
        with_features(next(iter(trainer.training_batches.epoch(0))), trainer.features, training=True)
        with_features(next(iter(trainer.validation_batches.epoch(0))), trainer.features)
        return sum(encoded)

    plain = trained(keep_embeddings=False)
    assert sum(encoded) == 2 * 8 and not kept()
    np.testing.assert_allclose(trained(), plain, rtol=1e-4)
    assert sum(encoded) == 8 == len(kept())
    assert passes() == 0
    kept()[0].write_bytes(kept()[0].read_bytes()[:200])
    trained()
    assert sum(encoded) == 1  # the damaged file's frame
    assert passes(model="medsam") == 6 and len(kept()) == 14  # another encoder's are not taken for its own
    assert passes(augmentation="light") == 0  # only the validation's come again, and they are there
    monkeypatch.setattr("echoplan.training.features.shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    assert passes(encoder_size=48) == 6 and len(kept()) == 14  # no room


@pytest.mark.usefixtures("tiny_sam")
def test_frozen_parts_stay_as_they_are(frame_setup: FoldSetup) -> None:
    trainer, batch = started(frame_setup, trainable="decoder", training_boxes="truth")
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    trainer.step(batch)
    moved = {
        name.split(".")[0] for name, value in trainer.network.state_dict().items() if (value != before[name]).any()
    }
    assert moved == {"mask_decoder", "locator"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training_boxes": "drawn"}, "training_boxes cannot be 'drawn'"),
        ({"box_reach": 0.5}, "box_reach"),
        ({"locator_learning_rate": 0.0}, "locator_learning_rate"),
    ],
)
def test_faulty_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(EchoPlanError, match=message):
        SAMRecipe().with_settings(settings)


def test_several_structures_are_refused(frame_setup: FoldSetup) -> None:
    several = replace(frame_setup.description, labels={"background": 0, "LV": 1, "LA": 2})
    with pytest.raises(EchoPlanError, match="SAMTrainer segments one structure"):
        Trainer(find_method("SAMTrainer"), replace(frame_setup, description=several))
