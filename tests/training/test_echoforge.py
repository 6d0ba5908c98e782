from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from echoplan.dataset import DatasetDescription
from echoplan.errors import EchoPlanError
from echoplan.imageio import read_mask
from echoplan.preprocessing.probabilities import load_probabilities
from echoplan.training.fold import FoldSetup
from echoplan.training.methods import find_method
from echoplan.training.metrics import read_metrics
from echoplan.training.model_folder import ModelFolder
from echoplan.training.trainer import Trainer
from echoplan.training.validation import predict_cases, validate_fold

from .conftest import make_setup

SMALL = {
    "epochs": 2, "pretrained": False, "backbone": "resnet18", "channels": 32, "fusion_layers": 1, "query_layers": 2,
    "supervision": "ed_es", "learning_rate": 1e-3,
}  # fmt: skip


# What the figure in the authors' repository shows.
FIGURE = {
    "pseudo_labels": "previous_epoch", "mask_head": "product", "shared_self_attention": True, "fusion_layers": 1,
    "queries": 3,
}  # fmt: skip


def make_trainer(setup: FoldSetup, *, seed: int = 1, **settings: object) -> Trainer:
    method = find_method("EchoForgeTrainer").with_settings({**SMALL, **settings})
    folder = setup.model_folder.with_name(f"EchoForgeTrainer__EchoPlans__{setup.plan.configuration}")
    return Trainer(method, replace(setup, model_folder=folder), seed=seed)


pytestmark = pytest.mark.usefixtures("slim_networks")


@pytest.fixture
def dense_setup(tmp_path: Path) -> FoldSetup:
    return make_setup(tmp_path, frames=4, batch_size=2, dense=True)


def started(setup: FoldSetup, *, epoch: int = 1, **settings: object) -> tuple[Trainer, dict]:
    """A trainer and a batch; by default in the last epoch, where pseudo-labels weigh fully."""
    trainer = make_trainer(setup, seed=0, **settings)
    trainer.on_epoch_start(epoch)
    return trainer, next(iter(trainer.training_batches.epoch(0)))


def gradients(trainer: Trainer, batch: dict) -> tuple[float, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    trainer.network.zero_grad()
    loss = trainer.loss(batch)
    loss.backward()
    return loss.item(), {
        name: parameter.grad.clone()
        for name, parameter in trainer.network.named_parameters()
        if parameter.grad is not None
    }


def test_it_learns_and_tells_how_its_pseudo_labels_fare(dense_setup: FoldSetup) -> None:
    trainer = make_trainer(dense_setup, epochs=4, rise_start=0.25, rise_end=0.75, iterations_per_epoch=5)
    trainer.run_training()
    metrics = read_metrics(trainer.setup.folder)
    assert metrics[-1]["val_dice"] > 0.6
    assert [entry["lambda"] for entry in metrics] == [0, 0.5, 1, 1]
    assert [entry["tau"] for entry in metrics] == pytest.approx([0.95, 0.875, 0.8, 0.8])
    assert not {"confident_share", "pseudo_label_dice"} & metrics[0].keys()  # nothing is reforged before the rise
    assert all(0 <= entry["confident_share"] <= 1 for entry in metrics[1:])
    assert metrics[-1]["pseudo_label_dice"] > metrics[1]["pseudo_label_dice"]
    assert metrics[-1]["hidden_dice"] > 0.5
    model = ModelFolder.read(trainer.setup.model_folder)
    summary = validate_fold(model.load_network(0), trainer.setup, stride=model.stride)
    assert summary["frames"] == 6 and summary["mean"]["LV"]["all"]["dice"]["mean"] > 0.5


def test_the_final_validation_walks_clips_abreast_and_finds_what_it_finds_in_each(
    dense_setup: FoldSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = make_trainer(dense_setup).network.eval()
    names, streams, walked = (*dense_setup.train, *dense_setup.val), network.streams, []
    monkeypatch.setattr(network, "streams", lambda frames, clips: walked.append(clips) or streams(frames, clips))
    predict_cases(network, dense_setup, names, save_to=tmp_path / "together")
    for name in names:
        predict_cases(network, dense_setup, [name], save_to=tmp_path / "alone")
    assert walked == [[6] * 4] + [[6]] * 4
    for name in names:
        one, other = (tmp_path / kind / f"{name}.nii.gz" for kind in ("alone", "together"))
        assert np.array_equal(read_mask(one), read_mask(other)) and 0 < read_mask(one).mean() < 1
        one, other = (load_probabilities(tmp_path / kind / f"{name}.npz").values for kind in ("alone", "together"))
        np.testing.assert_allclose(one, other, atol=1e-3)  # as they are rounded on the disk


def test_hidden_truth_changes_neither_loss_nor_gradients(dense_setup: FoldSetup) -> None:
    trainer, batch = started(dense_setup, last_threshold=0.5)
    assert (batch["hidden"][:, 1:-1] != 255).all() and (batch["labels"][:, 1:-1] == 255).all()
    loss, honest = gradients(trainer, batch)
    known = batch["hidden"] != 255
    falsified = {**batch, "hidden": torch.where(known, 1 - batch["hidden"], 255)}
    for other in (falsified, {name: value for name, value in batch.items() if name != "hidden"}):
        again, found = gradients(trainer, other)
        assert again == loss
        assert all(torch.equal(found[name], honest[name]) for name in honest)


def test_pseudo_labels_teach_the_answer_and_not_the_reforging(dense_setup: FoldSetup) -> None:
    trainer, batch = started(dense_setup, first_threshold=0.5, last_threshold=0.5)
    with_them, taught = gradients(trainer, batch)
    trainer.method.schedule = replace(trainer.method.schedule, start=1.0, end=1.0)
    without, untaught = gradients(trainer, batch)
    assert with_them > without
    assert any(not torch.equal(taught[name], untaught[name]) for name in taught if name.startswith("pyramid"))
    assert all(torch.equal(taught[name], untaught[name]) for name in taught if name.startswith("reforging"))
    assert any(taught[name].any() for name in taught if name.startswith("reforging"))  # it learns from truth


def test_unlabelled_clips_teach_nothing_before_the_rise(clip_setup: FoldSetup) -> None:
    trainer, batch = started(clip_setup, epoch=0, rise_start=1.0, rise_end=1.0)
    batch = {**batch, "labels": torch.full_like(batch["labels"], 255)}
    loss, found = gradients(trainer, batch)
    assert loss == 0 and not any(gradient.any() for gradient in found.values())


def test_unsure_unlabelled_pixels_teach_nothing(clip_setup: FoldSetup) -> None:
    trainer, batch = started(clip_setup, first_threshold=1.0, last_threshold=1.0)
    batch = {**batch, "labels": torch.full_like(batch["labels"], 255)}
    loss, found = gradients(trainer, batch)
    assert loss == 0 and not any(gradient.any() for gradient in found.values())


@pytest.mark.parametrize("settings", [{}, FIGURE])
def test_everything_learns(dense_setup: FoldSetup, settings: dict) -> None:
    trainer, batch = started(dense_setup, **settings)
    for weight in trainer.network.parameters():
        if not weight.any():  # residual branches start at zero, and hold back what is before them in the first step
            torch.nn.init.normal_(weight, std=0.1)
    trainer.network.recalibration.log_temperature.data.fill_(1.0)  # so that some patches are undecided
    _, found = gradients(trainer, batch)
    still = {name for name, _ in trainer.network.named_parameters() if name not in found or not found[name].any()}
    # A softmax does not see what is the same in all scores: the biases of keys may stand still, and that of IN.
    assert {name for name in still if not name.endswith("key.bias")} <= {"reforging.norm.bias"}


@pytest.mark.parametrize("module", ["temporal_fusion", "anchor_recalibration", "reforging", "flame_rise"])
def test_each_ablation_trains(clip_setup: FoldSetup, module: str) -> None:
    trainer, batch = started(clip_setup, **{module: False})
    loss, found = gradients(trainer, batch)
    assert loss > 0 and all(gradient.isfinite().all() for gradient in found.values())
    parts = {"temporal_fusion": "fusion.", "anchor_recalibration": "recalibration.", "reforging": "reforging."}
    if module in parts:
        assert not any(name.startswith(parts[module]) for name in found)
    else:
        assert {trainer.method.schedule.weight_at(epoch) for epoch in (1, 2, 3)} == {1.0}
        assert trainer.method.schedule.threshold_at(1) == 0.80


def test_clips_with_all_their_labels_train_without_pseudo_labels(dense_setup: FoldSetup) -> None:
    trainer, batch = started(dense_setup, supervision="all")
    assert (batch["labels"] != 255).all() and "hidden" not in batch
    loss, _ = gradients(trainer, batch)
    trainer.method.schedule = replace(trainer.method.schedule, weight=9.0)
    assert gradients(trainer, batch)[0] == loss
    recorded = trainer.metrics.take()
    assert recorded["confident_share"] is None and "pseudo_label_dice" not in recorded


def pseudo_of(trainer: Trainer, batch: dict) -> torch.Tensor:
    """The pseudo-labels' probabilities of a batch, as the loss gets them."""
    torch.manual_seed(0)
    trainer.method.epoch = trainer.epoch
    return trainer.method.forward(trainer.network.train(), batch).auxiliary["pseudo"]


@pytest.mark.parametrize("source", ["current", "previous_epoch"])
def test_pseudo_labels_come_from_the_network_as_it_is_or_as_the_last_epoch_left_it(
    dense_setup: FoldSetup, source: str
) -> None:
    trainer, batch = started(dense_setup, pseudo_labels=source, query_layers=0)
    before = pseudo_of(trainer, batch)
    assert not before.requires_grad
    for _ in range(3):
        trainer.step(batch)
    moved = (pseudo_of(trainer, batch) - before).abs().max()
    assert moved > 1e-3 if source == "current" else moved == 0
    trainer.on_epoch_start(2)
    assert (pseudo_of(trainer, batch) - before).abs().max() > 1e-3  # that epoch's weights teach the next


def test_the_log_says_where_reforging_has_nothing_to_do_and_what_to_type(tmp_path: Path) -> None:
    def said(setup: FoldSetup, **settings: object) -> str:
        trainer = make_trainer(setup, epochs=1, iterations_per_epoch=1, **settings)
        trainer.on_train_start()
        trainer.close()
        return max(trainer.setup.folder.glob("training_log_*.txt")).read_text()

    dense = make_setup(tmp_path / "dense", frames=4, batch_size=2, dense=True)
    log = said(dense, supervision="all")
    assert "reforging has nothing to do" in log
    assert "--set supervision=ed_es" in log and "--set reforging=false" in log
    for fold, settings in enumerate(({"supervision": "ed_es"}, {"supervision": "all", "reforging": False}), 1):
        assert "nothing to do" not in said(replace(dense, fold=fold), **settings)
    ends_alone = make_setup(tmp_path / "ends", frames=2, batch_size=2)  # two frames, both labelled: nothing to hide
    log = said(ends_alone, supervision="all")
    assert "--set reforging=false" in log and "--set supervision" not in log


def test_the_recipe_is_the_papers() -> None:
    method = find_method("EchoForgeTrainer")
    recipe, needs = method.recipe, method.requirements
    assert (recipe.epochs, recipe.optimiser, recipe.poly_power) == (50, "adam", 0.9)
    assert (recipe.network.anchors, recipe.network.neighbours, recipe.pretrained) == (2, 16, True)
    assert recipe.network.backbone == "resnet50"
    assert (needs.batch_size, needs.learning_rate, needs.frames, needs.paper_size) == (4, 1e-4, 10, 256)
    rise = recipe.schedule()
    assert [rise.weight_at(epoch) for epoch in (5, 30)] == [0, 1] and rise.threshold_at(50) == 0.80
    with pytest.raises(EchoPlanError, match=r"rise from 0\.9 to 0\.6"):
        recipe.with_settings({"rise_start": 0.9})


def test_one_structure_is_what_it_takes(clip_setup: FoldSetup) -> None:
    several = DatasetDescription("Toy", labels={"background": 0, "LV": 1, "MYO": 2})
    with pytest.raises(EchoPlanError, match="EchoForgeTrainer segments one structure"):
        Trainer(find_method("EchoForgeTrainer"), replace(clip_setup, description=several))
