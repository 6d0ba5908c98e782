"""What a training rests on: copied beside its weights, compared when it is resumed, thrown away as a whole."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from echoplan.errors import EchoPlanError
from echoplan.files import partial_prefix, read_json, write_json
from echoplan.plans import Decision
from echoplan.training import train_fold as train_fold_module
from echoplan.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from echoplan.training.fold import FoldSetup
from echoplan.training.methods import find_method
from echoplan.training.model_folder import ModelFolder, write_model_files
from echoplan.training.resume_check import as_started, basis_changes, training_basis
from echoplan.training.train_fold import FoldJob, fold_lock, fold_progress, train_fold
from echoplan.training.trainer import Trainer

from .conftest import make_setup

SETTINGS = {"epochs": 1, "iterations_per_epoch": 1, "base_features": 4}
DEAD = 2**22 + 1  # the number of no process: Linux gives none so large


def make_trainer(setup: FoldSetup, *, resume: bool = False, **settings: Any) -> Trainer:
    return Trainer(find_method("UNetTrainer").with_settings({**SETTINGS, **settings}), setup, seed=1, resume=resume)


def basis(setup: FoldSetup, **settings: Any) -> dict[str, Any]:
    return training_basis(setup, find_method("UNetTrainer").with_settings({**SETTINGS, **settings}).recipe)


def planned_anew(setup: FoldSetup, /, **values: Any) -> FoldSetup:
    """The fold with other decisions in its plan."""
    other = {name: Decision(value, "planned anew", kind="fixed") for name, value in values.items()}
    return replace(setup, plan=replace(setup.plan, decisions={**setup.plan.decisions, **other}))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> FoldSetup:
    """A fold that is trained, for tests that leave it as it is."""
    setup = make_setup(tmp_path_factory.mktemp("kept"))
    make_trainer(setup).run_training()
    return setup


@pytest.fixture
def started(kept: FoldSetup, frame_setup: FoldSetup) -> FoldSetup:
    """One of its own."""
    shutil.copytree(kept.model_folder, frame_setup.model_folder)
    return frame_setup


# Resuming -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"size": [48, 48]}, r"the input size \(H, W\) \(\[32, 32\] then, \[48, 48\] now\)"),
        ({"frames": 4}, r"the frames of a clip \(1 then, 4 now\)"),
        ({"crop": True}, r"the crop to the sector \(False then, True now\)"),
        ({"protocol": "stretch"}, r"how clips are fitted to the input \(aspect then, stretch now\)"),
        ({"normalisation": "minmax"}, r"the normalisation \(zscore_sector then, minmax now\)"),
        ({"mirror_axes": []}, r"the flips of the augmentation \(1 gone, horizontal\)"),
        ({"rotation_degrees": 5.0}, r"the rotation of the augmentation \(20.0 then, 5.0 now\)"),
        ({"batch_size": 2}, r"the batch size \(4 then, 2 now\)"),
        ({"learning_rate": 0.5}, r"the learning rate \(0.001 then, 0.5 now\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, Mapping) else "",
)
def test_a_training_is_not_resumed_from_another_plan(kept: FoldSetup, values: dict[str, Any], said: str) -> None:
    before = (kept.folder / "metrics.jsonl").read_text()
    with pytest.raises(EchoPlanError, match=said) as raised:
        make_trainer(planned_anew(kept, **values), resume=True).run_training()
    assert "rests on another plan or other data" in str(raised.value) and "--overwrite" in str(raised.value)
    assert (kept.folder / "metrics.jsonl").read_text() == before


def test_a_training_is_not_resumed_on_other_cases(kept: FoldSetup) -> None:
    first, *others = kept.train
    exchanged = replace(kept, train=(*others, *kept.val), val=(first,))
    with pytest.raises(EchoPlanError) as raised:
        make_trainer(exchanged, resume=True).run_training()
    assert "the training cases (1 new, p3_A4C; 1 gone, p0_A4C), the validation cases" in str(raised.value)


def test_a_training_goes_on_with_its_own_settings_and_none_need_be_named(kept: FoldSetup) -> None:
    final, method = kept.folder / "checkpoint_final.pth", find_method("UNetTrainer")
    own, seed = as_started(final, method, {}, None)
    assert (own.recipe, seed) == (method.with_settings(SETTINGS).recipe, 1)
    assert as_started(final, method, {"base_features": 4}, 1)[0].recipe == own.recipe
    for named, other, said in (
        ({"epochs": 10}, None, "epochs 1 then, 10 now"),
        ({"epochs": 1, "optimiser": "adam"}, 2, "optimiser sgd then, adam now, seed 1 then, 2 now"),
    ):
        with pytest.raises(EchoPlanError, match=rf"started with other settings: {said} .*--overwrite"):
            as_started(final, method, named, other)


def test_what_has_no_part_in_a_training_may_change(kept: FoldSetup) -> None:
    state = TrainingState.read(kept.folder / "checkpoint_latest.pth")
    same = planned_anew(kept, typical_clip={"height_px": 9}, frame_stride=3)  # a frame network has no stride
    assert basis_changes(state, basis(same)) == []
    # What the recipe says counts, and is compared with it.
    fixed = basis(planned_anew(kept, batch_size=2, learning_rate=0.5), batch_size=4, learning_rate=0.001)
    assert basis_changes(state, fixed) == []


def test_a_joints_datasets_are_compared_one_by_one(kept: FoldSetup) -> None:
    def joint(crop: bool) -> FoldSetup:
        shared = {name: item for name, item in kept.plan.decisions.items() if name != "crop"}
        apart = {name: {"crop": Decision(value, "its own")} for name, value in (("A", True), ("B", crop))}
        return replace(kept, plan=replace(kept.plan, decisions=shared, datasets=apart))

    state = replace(TrainingState.read(kept.folder / "checkpoint_latest.pth"), basis=basis(joint(True)))
    assert state.basis["crop"] == {"A": True, "B": True}
    assert basis_changes(state, basis(joint(True))) == []
    (change,) = basis_changes(state, basis(joint(False)))
    assert change == "the crop to the sector ({'A': True, 'B': True} then, {'A': True, 'B': False} now)"


def test_folds_of_another_plan_are_told_and_not_used(started: FoldSetup, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        make_trainer(replace(started, fold=1)).run_training()
        assert "another plan" not in caplog.text
        make_trainer(replace(planned_anew(started, crop=True), fold=2)).run_training()
    change = "the crop to the sector (False then, True now)"
    assert f"warning: fold 0 was trained on another plan ({change})" in caplog.text
    assert f"warning: fold 1 was trained on another plan ({change})" in caplog.text
    plans = started.model_folder / "plans.json"
    content = read_json(plans)
    content["configurations"]["frame"]["decisions"]["crop"]["value"] = True
    write_json(plans, content)
    model = ModelFolder.read(started.model_folder)
    model.load_network(2)
    for fold in (0, 1):
        with pytest.raises(EchoPlanError) as raised:
            model.load_network(fold)
        said = str(raised.value)
        assert f"fold {fold} was trained on another plan" in said and change in said
        assert f"echoplan_train Toy {fold} -tr UNetTrainer --overwrite" in said
    # What only the training's augmentation does may change; a checkpoint that does not know its plan has its size.
    content["configurations"]["frame"]["decisions"]["crop"]["value"] = False
    content["configurations"]["frame"]["decisions"]["rotation_degrees"]["value"] = 5.0
    write_json(plans, content)
    ModelFolder.read(started.model_folder).load_network(0)
    content["configurations"]["frame"]["decisions"]["size"]["value"] = [48, 32]
    write_json(plans, content)
    file = started.folder / "checkpoint_final.pth"
    save_checkpoint(file, {name: value for name, value in load_checkpoint(file).items() if name != "plan"})
    with pytest.raises(EchoPlanError, match=r"the input size \(H, W\) \(\[32, 32\] then, \[48, 32\] now\)"):
        ModelFolder.read(started.model_folder).load_network(0)


def test_checkpoints_of_an_earlier_echoplan_are_resumed(started: FoldSetup) -> None:
    file = started.folder / "checkpoint_latest.pth"
    state = load_checkpoint(file)
    del state["basis"], state["format"]
    save_checkpoint(file, state)
    make_trainer(planned_anew(started, rotation_degrees=5.0), resume=True).run_training()
    # Of the input size and the classes they do know.
    save_checkpoint(file, {**state, "size": [16, 16]})
    with pytest.raises(EchoPlanError, match=r"\[16, 16\] then, \[32, 32\] now"):
        make_trainer(started, resume=True).run_training()


# What lies beside the weights ---------------------------------------------------------------------------------------


def model_file(setup: FoldSetup, name: str) -> Path:
    return setup.model_folder / name


def test_files_that_are_as_they_should_be_are_not_written_again(started: FoldSetup) -> None:
    trainer = make_trainer(started, resume=True)
    trainer.on_train_start()
    trainer.close()
    files = [model_file(started, name) for name in ("plans.json", "dataset.json")]
    before = [(file.stat().st_ino, file.stat().st_mtime_ns) for file in files]
    write_model_files(started, trainer.describe())
    assert [(file.stat().st_ino, file.stat().st_mtime_ns) for file in files] == before


def test_a_plan_is_replaced_whole_or_not_at_all(started: FoldSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(started, resume=True)
    trainer.on_train_start()
    trainer.close()
    plan = started.preprocessed / "EchoPlans.json"
    before = plan.read_text()
    plan.write_text(before + "\n")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_model_files(started, trainer.describe())
    assert model_file(started, "plans.json").read_text() == before
    write_model_files(started, trainer.describe())
    assert model_file(started, "plans.json").read_text() == before + "\n"
    assert read_json(started.folder / "debug.json")["train"] == list(started.train)


# Overwriting --------------------------------------------------------------------------------------------------------


def test_a_fold_is_trained_by_one_process_at_a_time(frame_setup: FoldSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_fold_module, "_PATIENCE", 0)
    with fold_lock(frame_setup):
        with fold_lock(replace(frame_setup, fold=1)):
            pass
        with pytest.raises(EchoPlanError, match=rf"fold 0 is being .*\(process {os.getpid()}, machine .*, since 2"):
            train_fold(FoldJob("Toy", 0, settings=SETTINGS), frame_setup, overwrite=True)
    ended = os.fork()
    if not ended:  # a training that is killed
        held = fold_lock(frame_setup)
        held.__enter__()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(ended, 0)
    assert frame_setup.model_folder.joinpath(".fold_0.training.json").exists()
    with fold_lock(frame_setup):
        pass
    assert not frame_setup.model_folder.joinpath(".fold_0.training.json").exists()


def test_a_fold_whose_overwriting_is_killed_counts_as_not_started(
    started: FoldSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fold_progress(started) == (True, True)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            fold_progress(started, overwrite=True)
    assert fold_progress(started) == (False, False)
    assert not started.folder.exists()  # neither its checkpoints nor its metrics and validation are taken for new ones


def test_what_a_killed_overwriting_left_is_removed_by_any_fold(started: FoldSetup) -> None:
    left = started.model_folder / (partial_prefix().replace(f"-{os.getpid()}-", f"-{DEAD}-") + "fold_3")
    mine = started.model_folder / (partial_prefix() + "fold_4")
    for folder in (left, mine):
        (folder / "validation").mkdir(parents=True)
    assert fold_progress(started) == (True, True)
    assert mine.is_dir() and not left.exists()
    assert fold_progress(started, overwrite=True) == (False, False)
    assert [path.name for path in started.model_folder.glob("*fold_0*")] == []
