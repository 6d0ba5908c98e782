from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from echoplan.dataset import DatasetDescription
from echoplan.errors import EchoPlanError
from echoplan.imageio import read_mask
from echoplan.networks import ClipOutput
from echoplan.networks.pkechonet.parts import GatedUpdate
from echoplan.training.checkpoint import load_checkpoint, save_checkpoint
from echoplan.training.fold import FoldSetup
from echoplan.training.methods import find_method, method_registry
from echoplan.training.methods.unet import UNetMethod
from echoplan.training.metrics import read_metrics
from echoplan.training.model_folder import ModelFolder
from echoplan.training.recipe import Recipe, parse_settings
from echoplan.training.step import choose_precision, poly_rate
from echoplan.training.trainer import Trainer
from echoplan.training.validation import validate_fold

SMALL_UNET = {"epochs": 4, "iterations_per_epoch": 5, "base_features": 4, "optimiser": "adamw", "learning_rate": 5e-3}
SMALL = {
    "UNetTrainer": SMALL_UNET,
    "UNet2DtTrainer": {**SMALL_UNET, "epochs": 3, "iterations_per_epoch": 4},
    "PKEchoNetR18Trainer": {"epochs": 3, "pretrained": False},
}


def make_trainer(name: str, setup: FoldSetup, *, resume: bool = False, **settings: object) -> Trainer:
    method = find_method(name).with_settings({**SMALL[name], **settings})
    folder = setup.model_folder.with_name(f"{name}__EchoPlans__{setup.plan.configuration}")
    return Trainer(method, replace(setup, model_folder=folder), seed=1, resume=resume)


def test_the_unet_learns_and_leaves_everything_that_is_promised(frame_setup: FoldSetup) -> None:
    trainer = make_trainer("UNetTrainer", frame_setup, epochs=8, iterations_per_epoch=8)
    trainer.run_training()
    folder = trainer.setup.folder
    metrics = read_metrics(folder)
    assert [entry["epoch"] for entry in metrics] == list(range(8))
    assert metrics[-1]["train_loss"] < 0.75 * metrics[0]["train_loss"]
    assert metrics[-1]["val_dice"] > 0.8
    assert {"data_seconds", "step_seconds", "seconds", "learning_rate", "val_dice_smooth"} <= metrics[0].keys()
    for name in ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth", "debug.json"):
        assert (folder / name).stat().st_size > 0
    assert len(list(folder.glob("training_log_*.txt"))) == 1
    assert json.loads((folder / "debug.json").read_text())["settings"]["epochs"] == 8


def test_resuming_with_other_settings_is_refused(frame_setup: FoldSetup) -> None:
    make_trainer("UNetTrainer", frame_setup, epochs=1).run_training()
    with pytest.raises(EchoPlanError, match=r"other settings: epochs 1 then, 2 now"):
        make_trainer("UNetTrainer", frame_setup, resume=True, epochs=2).run_training()


def test_unlabelled_frames_give_no_gradient(clip_setup: FoldSetup) -> None:
    trainer = make_trainer("PKEchoNetR18Trainer", clip_setup)
    network = trainer.network.train()
    labels = torch.full((2, 4, 32, 32), 255, dtype=torch.uint8)
    batch = {"clip": torch.randn(2, 4, 1, 32, 32), "labels": labels, "distance": torch.zeros(2, 4, 32, 32)}
    trainer.loss(batch).backward()
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())


def test_pkechonet_is_supervised_at_every_refinement_stage(clip_setup: FoldSetup) -> None:
    trainer = make_trainer("PKEchoNetR18Trainer", clip_setup)
    batch = next(iter(trainer.training_batches.epoch(0)))
    output = trainer.method.forward(trainer.network.train(), batch)
    assert len(output.auxiliary["stages"]) == 3  # P0 to P2; the logits are P3
    watch = {"epoch": 0, "record": trainer.metrics.add}
    whole = trainer.method.loss(output, batch, **watch)
    fewer = type(output)(output.logits, {"stages": output.auxiliary["stages"][1:]})
    without = trainer.method.loss(fewer, batch, **watch)
    assert whole.item() != pytest.approx(without.item(), abs=1e-4)


@pytest.mark.parametrize("squared", [True, False])
def test_pkechonets_dice_is_v_nets_unless_it_is_told_otherwise(clip_setup: FoldSetup, squared: bool) -> None:
    trainer = make_trainer("PKEchoNetR18Trainer", clip_setup, boundary_weight=0.0, squared_dice=squared)
    assert find_method("PKEchoNetTrainer").recipe.squared_dice
    labels = torch.full((1, 2, 32, 32), 255)
    labels[:, 0] = (torch.rand(32, 32) < 0.3).long()
    logits, stage = torch.randn(2, 1, 2, 1, 32, 32)
    batch = {"labels": labels, "distance": torch.zeros(1, 2, 32, 32)}
    loss = trainer.method.loss(ClipOutput(logits, {"stages": [stage]}), batch, epoch=0, record=trainer.metrics.add)
    truth, expected = labels[0, 0].float(), 0.0
    for mask in (logits[0, 0, 0].sigmoid(), stage[0, 0, 0].sigmoid()):
        size = (mask.square() if squared else mask).sum() + truth.sum()
        expected += float(1 - (2 * (mask * truth).sum() + 1) / (size + 1))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_rows_of_pkechonets_tables_are_settings(clip_setup: FoldSetup) -> None:
    given = ["region_proxy=false", "kernel_update=gating", "temporal_attention=false", "dropout=0.3", "stages=4"]
    network = make_trainer("PKEchoNetR18Trainer", clip_setup, **parse_settings(given)).network
    assert not len(network.affinities) and len(network.segmentation.refinements) == 4
    refinement = network.segmentation.refinements[0]
    assert isinstance(refinement.update, GatedUpdate) and refinement.temporal is None
    assert {module.p for module in refinement.modules() if isinstance(module, torch.nn.Dropout)} == {0.3}


def test_everything_learns_as_pkechonets_authors_ran_it(clip_setup: FoldSetup) -> None:
    theirs = {"cross_video": "train", "grouping": "sum", "position": "kernels", "kernel_bias": True}
    trainer = make_trainer("PKEchoNetR18Trainer", clip_setup, **theirs)
    trainer.network.train()
    trainer.loss(next(iter(trainer.training_batches.epoch(0)))).backward()
    gradients = {name: weight.grad for name, weight in trainer.network.named_parameters()}
    still = [name for name, gradient in gradients.items() if gradient is None or not gradient.any()]
    assert all(name.startswith("affinities.3.") for name in still)  # of one pixel, which has no neighbours to weigh


def test_a_setting_that_a_checkpoint_does_not_know_is_as_it_was_before() -> None:
    recipe = find_method("PKEchoNetTrainer").recipe
    known = recipe.to_dict()
    assert recipe.complete(known) == known and known["squared_dice"] is True
    older = {name: value for name, value in known.items() if name not in ("squared_dice", "position")}
    assert recipe.complete({**older, "epochs": 7}) == {**known, "squared_dice": False, "epochs": 7}
    assert find_method("EchoForgeTrainer").recipe.complete({})["recalibration_weight"] == "falling"  # a network's too


def test_the_space_time_unet_trains_on_windows_and_is_watched_on_clips(clip_setup: FoldSetup) -> None:
    trainer = make_trainer("UNet2DtTrainer", clip_setup)
    training, watched = trainer.training_batches.samples, trainer.validation_batches.samples
    assert len(training) == 3 * 2 * 4  # cases, labelled frames, places in a window
    assert [sample.frames for sample in watched] == [(0, 2, 3, 5)]


def test_validation_never_sees_a_label(frame_setup: FoldSetup) -> None:
    """The same fold with its validation labels falsified must give the same masks."""
    trainer = make_trainer("UNetTrainer", frame_setup, epochs=2)
    trainer.run_training()
    model = ModelFolder.read(trainer.setup.model_folder)
    network = model.load_network(0)
    case = trainer.setup.val[0]
    summary = validate_fold(network, trainer.setup, stride=model.stride)
    honest = read_mask(trainer.setup.folder / "validation" / f"{case}.nii.gz")
    assert summary["frames"] == 2 and summary["mean"]["LV"]["all"]["dice"]["mean"] > 0

    store = trainer.setup.store
    labels = store.labels(case)
    labels[labels != 255] = 1 - labels[labels != 255]
    store.write(store.case(case), store.frames(case), labels)
    falsified = validate_fold(network, trainer.setup, stride=model.stride)
    np.testing.assert_array_equal(read_mask(trainer.setup.folder / "validation" / f"{case}.nii.gz"), honest)
    assert falsified["mean"] == summary["mean"]  # judged against the native labels, which nobody touched
    assert (trainer.setup.folder / "validation" / "ef.csv").read_text().startswith("patient,")
    with np.load(trainer.setup.folder / "validation" / f"{case}.npz") as saved:
        assert saved["probabilities"].shape == (1, 6, 32, 32)


def test_the_model_folder_finds_folds_and_rebuilds_the_network(frame_setup: FoldSetup) -> None:
    trainer = make_trainer("UNetTrainer", frame_setup, epochs=1)
    trainer.run_training()
    model = ModelFolder.read(trainer.setup.model_folder)
    assert model.folds() == (0,) and model.trainer == "UNetTrainer" and model.window == 1
    network = model.load_network(0)
    assert not network.training
    for name, value in trainer.network.state_dict().items():
        assert torch.equal(value, network.state_dict()[name])
    with pytest.raises(EchoPlanError, match="no trained model"):
        ModelFolder.read(trainer.setup.folder)


def test_a_damaged_or_foreign_checkpoint_is_named(tmp_path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    save_checkpoint(path, {"network": {"w": torch.ones(3)}})
    assert torch.equal(load_checkpoint(path)["network"]["w"], torch.ones(3))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(EchoPlanError, match=r"checkpoint_final\.pth"):
        load_checkpoint(path)
    torch.save({"format": 99}, path)
    with pytest.raises(EchoPlanError, match="another format"):
        load_checkpoint(path)
    with pytest.raises(EchoPlanError, match="missing"):
        load_checkpoint(tmp_path / "none.pth")


def test_a_trainer_for_one_structure_says_so(frame_setup: FoldSetup) -> None:
    class OneStructure(UNetMethod):
        requirements = replace(UNetMethod.requirements, multi_structure=False)

    several = DatasetDescription("Toy", labels={"background": 0, "LV": 1, "MYO": 2})
    with pytest.raises(EchoPlanError, match=r"OneStructure segments one structure.*--structures lv"):
        Trainer(OneStructure(), replace(frame_setup, description=several))


def test_settings_are_checked_and_near_names_offered() -> None:
    recipe = UNetMethod().recipe
    with pytest.raises(EchoPlanError, match="did you mean learning_rate"):
        recipe.with_settings({"learnin_rate": 1e-3})
    for settings in ({"epochs": "many"}, {"epochs": True}, {"optimiser": "rmsprop"}, {"epochs": 0}):
        with pytest.raises(EchoPlanError):
            recipe.with_settings(settings)
    assert recipe.with_settings({"learning_rate": 1}).learning_rate == 1


def test_settings_of_a_recipe_without_postponed_annotations_are_checked_too() -> None:
    made: dict[str, type] = {}
    source = "@dataclass(frozen=True)\nclass Mine(Recipe):\n    width: int = 3\n    share: float | None = None\n"
    exec(source, {"dataclass": dataclass, "Recipe": Recipe}, made)
    recipe = made["Mine"]().with_settings({"width": 5, "share": 0.5, "epochs": 2})
    assert (recipe.width, recipe.share, recipe.epochs) == (5, 0.5, 2)
    with pytest.raises(EchoPlanError, match="width must be int, not 'wide'"):
        recipe.with_settings({"width": "wide"})


@pytest.mark.parametrize("name", sorted(method_registry()))
def test_the_networks_settings_are_among_the_recipes_own(name: str) -> None:
    recipe = method_registry()[name].recipe
    flat, of_network = recipe.to_dict(), asdict(recipe.network)
    assert of_network and of_network.items() <= flat.items()
    assert len(flat) == len(fields(recipe)) - 1 + len(of_network)  # no name means two things
    assert recipe.with_settings(flat) == recipe
    with pytest.raises(EchoPlanError, match="no setting 'network'"):
        recipe.with_settings({"network": of_network})


def test_the_recipes_are_the_papers() -> None:
    unet, method = find_method("UNetTrainer").recipe, find_method("PKEchoNetR18Trainer")
    pkecho = method.recipe
    assert (unet.epochs, unet.iterations_per_epoch, unet.optimiser, unet.momentum) == (1000, 250, "sgd", 0.99)
    assert (pkecho.epochs, pkecho.optimiser, pkecho.poly_power, pkecho.network.stages) == (50, "adam", 0.9, 3)
    assert method.requirements.batch_size == 8 and method.requirements.learning_rate == 1e-3


def test_poly_schedule() -> None:
    assert poly_rate(1.0, 0, 10, 0.9) == 1.0
    assert poly_rate(1.0, 5, 10, 0.9) == pytest.approx(0.5**0.9)
    assert poly_rate(1.0, 12, 10, 0.9) > 0


def test_trainers_are_found_by_name_and_by_file(tmp_path) -> None:
    assert {"UNetTrainer", "UNet2DtTrainer", "PKEchoNetTrainer", "PKEchoNetR18Trainer"} <= method_registry().keys()
    with pytest.raises(EchoPlanError, match=r"did you mean .*PKEchoNetTrainer"):
        find_method("PkEchoNetTrainer")
    own = tmp_path / "mine.py"
    own.write_text(
        "from echoplan.training.methods.unet import UNetMethod\n\nclass Mine(UNetMethod):\n    '''Mine.'''\n"
    )
    assert isinstance(find_method(f"{own}:Mine"), UNetMethod)
    for spec in (f"{own}:Other", f"{tmp_path / 'none.py'}:Mine"):
        with pytest.raises(EchoPlanError):
            find_method(spec)
    own.write_text("class Mine:\n    pass\n")
    with pytest.raises(EchoPlanError, match="is no trainer"):
        find_method(f"{own}:Mine")
    own.write_text("import nothing_of_that_name\n")
    with pytest.raises(EchoPlanError, match="fails on import"):
        find_method(f"{own}:Mine")


@pytest.mark.parametrize(
    "line",
    [
        "from echoplan.training.trainers import EchoTrainer",
        "from echoplan.training.methods import EchoTrainer",
        "from echoplan.training.recipe import TrainerNeeds",
    ],
)
def test_a_file_of_an_earlier_echoplan_is_told_how_classes_are_now(tmp_path: Path, line: str) -> None:
    own = tmp_path / "mine.py"
    own.write_text(f"{line}\n\nclass Mine:\n    pass\n")
    with pytest.raises(EchoPlanError, match=r"of an earlier EchoPlan: .*methods\.Method, as docs/trainers\.md shows"):
        find_method(f"{own}:Mine")


def test_the_method_of_the_documentation_trains(clip_setup: FoldSetup, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "trainers.md").read_text()
    own = tmp_path / "my_method.py"
    own.write_text(page.partition("```python\n")[2].partition("```")[0])
    method = find_method(f"{own}:MyTrainer").with_settings({"epochs": 1, "iterations_per_epoch": 2, "width": 4})
    assert (method.name, method.configuration, method.requirements.frames) == ("MyTrainer", "clip", 10)
    Trainer(method, clip_setup, source=f"{own}:MyTrainer").run_training()
    (metrics,) = read_metrics(clip_setup.folder)
    assert metrics["my_loss"] == pytest.approx(metrics["train_loss"], rel=0.01)
    ModelFolder.read(clip_setup.model_folder).load_network(0, trust_code=True)


def test_a_name_may_be_a_method_with_some_settings(clip_setup: FoldSetup) -> None:
    variants = {
        "PKEchoNetTrainer": ("backbone", "resnet50"), "PKEchoNetR34Trainer": ("backbone", "resnet34"),
        "PKEchoNetR18Trainer": ("backbone", "resnet18"), "E3SAM2Trainer": ("variant", "tiny"),
        "E3SAM2SmallTrainer": ("variant", "small"), "SAMTrainer": ("model", "sam"),
        "MedSAMTrainer": ("model", "medsam"),
    }  # fmt: skip
    for name, (setting, value) in variants.items():
        method = find_method(name)
        assert method.name == name and method.recipe.to_dict()[setting] == value
        assert method.with_settings({"epochs": 3}).recipe.to_dict()[setting] == value
    # A checkpoint that was written before such a setting had a name has the one that belongs to its trainer.
    trainer = make_trainer("PKEchoNetR18Trainer", clip_setup, epochs=1)
    trainer.run_training()
    for kind in ("latest", "final"):
        file = trainer.setup.folder / f"checkpoint_{kind}.pth"
        state = load_checkpoint(file)
        del state["settings"]["backbone"]
        save_checkpoint(file, state)
    make_trainer("PKEchoNetR18Trainer", clip_setup, resume=True, epochs=1).run_training()
    ModelFolder.read(trainer.setup.model_folder).load_network(0)
    with pytest.raises(EchoPlanError, match="other settings: backbone"):
        make_trainer("PKEchoNetR18Trainer", clip_setup, resume=True, epochs=1, backbone="resnet34").run_training()


def test_three_dimensional_convolutions_train_in_float32_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("echoplan.training.step.fast_dtype", lambda device: torch.bfloat16)
    flat, deep = torch.nn.Conv2d(1, 1, 3), torch.nn.Sequential(torch.nn.Conv3d(1, 1, 3))
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_precision("auto", cpu, deep) == torch.float32
    assert choose_precision("auto", cpu, flat) == choose_precision("auto", cuda, deep) == torch.bfloat16
    assert choose_precision("bfloat16", cpu, deep) == torch.bfloat16  # asked for
