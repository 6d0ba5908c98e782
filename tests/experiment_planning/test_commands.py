from functools import partial

import numpy as np
import pytest

from echoplan.experiment_planning import MemoryModel, commands
from echoplan.files import read_json, write_json
from echoplan.imageio import Clip, read_mask, write_mask
from echoplan.plans import Plan
from echoplan.preprocessing import ClipStore
from echoplan.scripts import extract_fingerprint, plan_and_preprocess, plan_experiment, preprocess, train
from echoplan.training.methods import method_registry


@pytest.fixture
def planned(tiny_dataset, tmp_path, monkeypatch):
    """A tiny raw dataset, with the environment pointing to it; gives the folder of what is preprocessed."""
    monkeypatch.setenv("ECHOPLAN_ROOT", str(tmp_path))
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"echoplan_{name}", raising=False)
    only = {"UNetTrainer": method_registry()["UNetTrainer"]}
    monkeypatch.setattr(commands, "method_registry", lambda: dict(only))
    unsimulated = partial(commands.make_plan, measure=lambda method, **_: MemoryModel(0.1, 0.01, "mixed"))
    monkeypatch.setattr(commands, "make_plan", unsimulated)  # a training step takes seconds to simulate
    tiny_dataset(patients=3)
    return tmp_path / "preprocessed" / "Dataset001_TINY"


def test_from_raw_to_store_in_one_go(planned, capsys):
    options = ["-d", "TINY", "--verify_dataset_integrity", "-tr", "UNetTrainer", "-np", "0", "--gpu_memory_target", "8"]
    assert plan_and_preprocess(options) == 0
    shown = capsys.readouterr().out
    assert "no problem found in 6 cases" in shown and "learning rate" in shown and ", because: " not in shown
    plan = Plan.read(planned / "EchoPlans.json")
    resolved = plan.resolve("UNetTrainer")
    store = ClipStore(planned / resolved.store)
    assert len(store.cases()) == 6
    assert store.frames("p0_A4C").shape == (5, *resolved.size)
    written = ["EchoPlans.json", "dataset.json", "dataset_fingerprint.json", "gt_segmentations", "splits_final.json"]
    assert sorted(path.name for path in planned.iterdir()) == sorted([*written, store.folder.name])
    assert len(read_json(planned / "splits_final.json")) == 3
    assert len(list((planned / "gt_segmentations").iterdir())) == 6


def test_step_by_step(planned, capsys):
    assert plan_experiment(["-d", "1"]) == 1
    assert "echoplan_extract_fingerprint" in capsys.readouterr().err
    assert extract_fingerprint(["-d", "1", "-np", "0"]) == 0
    options = ["-d", "Dataset001_TINY", "--protocol", "paper", "--size", "64", "-p", "PaperPlans"]
    assert plan_experiment(options) == 0
    assert preprocess(["-d", "TINY", "-p", "PaperPlans", "-tr", "UNetTrainer", "-np", "0"]) == 0
    assert len(ClipStore(planned / "PaperPlans_64x64_stretch").cases()) == 6


def test_a_broken_case_is_passed_named_and_makes_exit_1(planned, tmp_path, capsys):
    (tmp_path / "raw" / "Dataset001_TINY" / "imagesTr" / "p1_A2C.nii.gz").write_bytes(b"no image")
    assert plan_and_preprocess(["-d", "TINY", "-tr", "UNetTrainer", "-np", "0", "--size", "64"]) == 1
    assert capsys.readouterr().err.count("p1_A2C: ") == 1  # once, at the end
    assert len(ClipStore(planned / "EchoPlans_64x64").cases()) == 5
    in_folds = {name for fold in read_json(planned / "splits_final.json") for name in (*fold["train"], *fold["val"])}
    assert "p1_A2C" not in in_folds and len(in_folds) == 5


def test_broken_cases_are_named_even_where_no_plan_can_be_made(planned, tmp_path, capsys):
    for image in (tmp_path / "raw" / "Dataset001_TINY" / "imagesTr").iterdir():
        image.write_bytes(b"no image")
    assert plan_and_preprocess(["-d", "TINY", "-np", "0"]) == 1
    shown = capsys.readouterr().err
    assert "6 not done" in shown and "p0_A2C: this is no clip" in shown and "error: " in shown


def test_cases_without_a_labelled_frame_are_named(planned, tmp_path, caplog):
    file = tmp_path / "raw" / "Dataset001_TINY" / "labelsTr" / "p1_A2C.nii.gz"
    mask = np.full_like(read_mask(file), 255)
    write_mask(file, mask, like=Clip(mask))
    assert plan_and_preprocess(["-d", "TINY", "--no_preprocess", "-np", "0"]) == 0
    assert "without a labelled frame, and so in no fold: p1_A2C" in caplog.text


def test_problems_stop_before_anything_is_written(planned, tmp_path, capsys):
    (tmp_path / "raw" / "Dataset001_TINY" / "labelsTr" / "p1_A2C.nii.gz").unlink()
    assert plan_and_preprocess(["-d", "TINY", "--verify_dataset_integrity", "-np", "0"]) == 1
    assert "problem: p1_A2C" in capsys.readouterr().err
    assert not planned.exists()


def test_no_preprocess(planned):
    assert plan_and_preprocess(["-d", "TINY", "--no_preprocess", "-np", "0"]) == 0
    assert (planned / "EchoPlans.json").is_file() and not (planned / "gt_segmentations").exists()


def test_a_trainer_of_the_users_own_is_planned(planned, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from echoplan.training.recipe import MethodRequirements\n"
        "from echoplan.training.methods.unet import UNetMethod\n\n"
        "class MyTrainer(UNetMethod):\n"
        "    requirements = MethodRequirements(batch_size=3, learning_rate=0.5, paper_size=64, square=True)\n"
    )
    name = f"{file}:MyTrainer"
    assert plan_and_preprocess(["-d", "TINY", "-tr", name, "-np", "0"]) == 0
    resolved = Plan.read(planned / "EchoPlans.json").resolve("MyTrainer")
    assert (resolved.size, resolved.batch_size, resolved.value("learning_rate")) == ((64, 64), 3, 0.5)
    assert preprocess(["-d", "TINY", "-tr", name, "-np", "0"]) == 0
    assert len(ClipStore(planned / resolved.store).cases()) == 6


def test_a_plan_grows_by_trainers_and_starts_anew_where_it_rests_on_something_else(planned, caplog):
    file, plan = planned / "EchoPlans.json", ["-d", "TINY", "--no_preprocess", "-np", "0", "--gpu_memory_target"]
    assert plan_and_preprocess([*plan, "8", "-tr", "PKEchoNetR18Trainer"]) == 0
    assert list(Plan.read(file).trainers) == ["PKEchoNetR18Trainer"]
    first = Plan.read(file).trainers["PKEchoNetR18Trainer"]
    assert plan_and_preprocess([*plan, "8", "-tr", "UNetTrainer"]) == 0
    assert Plan.read(file).trainers["PKEchoNetR18Trainer"] == first and "UNetTrainer" in Plan.read(file).trainers
    assert plan_and_preprocess([*plan, "11", "-tr", "UNetTrainer"]) == 0  # another GPU: another batch size, maybe
    assert list(Plan.read(file).trainers) == ["UNetTrainer"]
    file.write_text("{}")
    assert plan_and_preprocess([*plan, "8", "-tr", "UNetTrainer"]) == 0
    assert list(Plan.read(file).trainers) == ["UNetTrainer"] and "is replaced: " in caplog.text


def test_a_trainer_that_was_not_planned_says_how(planned, capsys):
    assert plan_and_preprocess(["-d", "TINY", "--size", "64", "-tr", "UNetTrainer", "-np", "0"]) == 0
    assert train(["TINY", "0", "-tr", "E3SAM2Trainer"]) == 1
    assert "run echoplan_plan_and_preprocess -d Dataset001_TINY -tr E3SAM2Trainer" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0", "64x", "big", "64x0"])
def test_an_odd_size_is_a_usage_error(planned, size, capsys):
    with pytest.raises(SystemExit) as error:
        plan_experiment(["-d", "TINY", "--size", size])
    assert error.value.code == 2 and "192x256" in capsys.readouterr().err


def test_an_edited_split_that_mixes_patients_is_refused(planned, capsys):
    write_json(planned / "splits_final.json", [{"train": ["p0_A2C"], "val": ["p0_A4C"]}])
    assert plan_and_preprocess(["-d", "TINY", "--no_preprocess", "-np", "0"]) == 1
    assert "same patients" in capsys.readouterr().err
