"""Two datasets of different kinds trained jointly, from raw files to predictions, and the names a joint goes by."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from echoplan.dataset import DatasetDescription, EchoDataset
from echoplan.datasets.phantom.patient import PhantomSettings
from echoplan.datasets.phantom.write import make_phantom_dataset
from echoplan.errors import EchoPlanError
from echoplan.files import read_json, write_json
from echoplan.imageio import Clip, read_mask
from echoplan.inference import EchoPredictor
from echoplan.inference.nearest_dataset import most_alike
from echoplan.multi_dataset import MultiDataset, shared_labels
from echoplan.paths import Folders, dataset_folders
from echoplan.plans import Plan
from echoplan.preprocessing import ClipStore
from echoplan.scripts import compare as compare_command
from echoplan.scripts import evaluate_folder as evaluate_folder_command
from echoplan.scripts import find_best_configuration as find_best_configuration_command
from echoplan.scripts import plan_and_preprocess, plan_experiment, predict, preprocess, train

NAME = "CAMUS+EchoNet"
MODEL = "UNetTrainer__EchoPlans__frame"
QUICK = ["--epochs", "2", "--set", "iterations_per_epoch=2", "--set", "batch_size=4", "--set", "base_features=4",
         "--device", "cpu", "-np", "0"]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CAMUS, wide with three structures, and EchoNet, square with the cavity alone, planned jointly; one fold trained.

    EchoNet's sector leaves a wide margin, so that its clips are cropped and CAMUS' are not.
    """
    folder = tmp_path_factory.mktemp("joint")
    wide = PhantomSettings(size=(72, 96))
    square = PhantomSettings(size=(64, 64), views=("A4C",), whole_beat=True)
    make_phantom_dataset(folder / "raw/Dataset001_CAMUS", patients=2, test_patients=1, structures="all", settings=wide)
    make_phantom_dataset(folder / "raw/Dataset004_EchoNet", patients=3, labels="ed_es", seed=1, settings=square)
    with pytest.MonkeyPatch.context() as environment:
        in_root(environment, folder)
        assert plan_and_preprocess(["-d", "EchoNet+1", "-tr", "UNetTrainer", "--size", "64", "-np", "0"]) == 0
        assert train([NAME, "0", *QUICK]) == 0
    return folder


def in_root(environment: pytest.MonkeyPatch, folder: Path) -> None:
    environment.setenv("ECHOPLAN_ROOT", str(folder))
    for name in ("raw", "preprocessed", "results"):
        environment.delenv(f"echoplan_{name}", raising=False)


@pytest.fixture
def typed(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`root`, with the environment pointing to it."""
    in_root(monkeypatch, root)
    return root


def test_the_plan_has_one_grid_and_each_datasets_own_geometry(root: Path) -> None:
    home = root / "preprocessed" / NAME
    plan = Plan.read(home / "EchoPlans.json").resolve("UNetTrainer")
    camus, echonet = plan.of("CAMUS"), plan.of("EchoNet")
    assert plan.size == camus.size == echonet.size == (64, 64)
    assert (camus.crop, echonet.crop) == (False, True)
    spacings = plan.decisions["size"].evidence["target_spacing_mm"]
    assert set(spacings) == {"CAMUS", "EchoNet"} and spacings["CAMUS"] != spacings["EchoNet"]
    for own in (camus, echonet):
        assert own.decisions["crop"].evidence["median_saved_share"] == pytest.approx(
            read_json(home / "dataset_fingerprint.json")["summary"]["datasets"]["CAMUS" if own is camus else "EchoNet"][
                "sector_saved_share"
            ]["median"]
        )
    store = ClipStore(home / plan.store)
    assert read_json(store.folder / "store.json")["crop"] == {"CAMUS": False, "EchoNet": True}
    for case in store.cases():
        stored = store.case(case)
        height, width = stored.geometry.native_shape
        assert (stored.geometry.crop_box == (0, height, 0, width)) is case.startswith("CAMUS")
        assert case.startswith(f"{stored.dataset}__") and stored.crop is (stored.dataset == "EchoNet")


def test_unshared_structures_are_background_and_shared_ones_keep_their_place(root: Path) -> None:
    home = root / "preprocessed" / NAME
    assert read_json(home / "dataset.json")["labels"] == {"background": 0, "LV": 1}
    own = read_mask(root / "raw/Dataset001_CAMUS/labelsTr/patient0001_4CH.nii.gz")
    joined = read_mask(home / "gt_segmentations/CAMUS__patient0001_4CH.nii.gz")
    assert set(np.unique(own)) == {0, 1, 2, 3}
    np.testing.assert_array_equal(joined, own == 1)
    sparse = read_mask(home / "gt_segmentations/EchoNet__patient0001_4CH.nii.gz")
    assert set(np.unique(sparse)) == {0, 1, 255}  # what nobody labelled stays so


def test_a_fold_of_the_joint_is_the_datasets_own_folds(root: Path) -> None:
    joint = read_json(root / "preprocessed" / NAME / "splits_final.json")
    for folder, name in (("Dataset001_CAMUS", "CAMUS"), ("Dataset004_EchoNet", "EchoNet")):
        own = read_json(root / "preprocessed" / folder / "splits_final.json")
        for number, fold in enumerate(joint):
            mine = {part: [case for case in cases if case.startswith(name)] for part, cases in fold.items()}
            expected = own[number] if number < len(own) else {"train": own[0]["train"] + own[0]["val"], "val": []}
            assert {part: sorted(cases) for part, cases in mine.items()} == {
                part: sorted(f"{name}__{case}" for case in cases) for part, cases in expected.items()
            }
    validated = [case for fold in joint for case in fold["val"]]
    assert len(validated) == len(set(validated)) == 4 + 3 and len(joint) == 3


def test_each_dataset_is_validated_apart(root: Path) -> None:
    fold = root / "results" / NAME / MODEL / "fold_0"
    for line in (fold / "metrics.jsonl").read_text().splitlines():
        metrics = json.loads(line)
        own = metrics["val_dice_CAMUS"], metrics["val_dice_EchoNet"]
        assert metrics["val_dice"] == pytest.approx(sum(own) / 2)
    summary = read_json(fold / "validation" / "summary.json")
    assert {name: part["cases"] for name, part in summary["datasets"].items()} == {"CAMUS": 2, "EchoNet": 1}
    frames = [frame for case in summary["per_case"] if case.startswith("EchoNet")
              for frame in summary["per_case"][case]["frames"]]  # fmt: skip
    found = summary["datasets"]["EchoNet"]["mean"]["LV"]["all"]
    assert found["frames"] == len(frames) == 2
    assert found["dice"]["mean"] == pytest.approx(np.mean([frame["LV"]["dice"] for frame in frames]))
    for case in summary["per_case"]:
        reference = read_mask(root / "preprocessed" / NAME / "gt_segmentations" / f"{case}.nii.gz")
        assert read_mask(fold / "validation" / f"{case}.nii.gz").shape == reference.shape  # the native grid


def test_clips_of_both_kinds_are_predicted_each_in_its_own_way(typed: Path, tmp_path: Path) -> None:
    clips = typed / "raw/Dataset001_CAMUS/imagesTs"
    assert predict(["-i", str(clips), "-o", str(tmp_path / "out"), "--device", "cpu", "-np", "0"]) == 0
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2
    model = typed / "results" / NAME / MODEL
    predictor = EchoPredictor.from_model_folder(model, device="cpu")
    plan = predictor.members[0].model.plan
    for folder, name in (("Dataset001_CAMUS", "CAMUS"), ("Dataset004_EchoNet", "EchoNet")):
        dataset = EchoDataset.read(typed / "raw" / folder)
        clip = dataset.load_clip(dataset.cases[0])
        assert most_alike(plan, clip) == name
        prepared = predictor.prepare(clip)
        named = EchoPredictor.from_model_folder(model, device="cpu", like=name)
        assert prepared.on_grids[0].geometry == named.prepare(clip).on_grids[0].geometry
        found, expected = (
            each.segment(each.prepare(clip), keep_probabilities=np.float32) for each in (predictor, named)
        )
        np.testing.assert_array_equal(found.probabilities.values, expected.probabilities.values)
    other = EchoPredictor.from_model_folder(model, device="cpu", like="CAMUS").prepare(clip)
    assert other.on_grids[0].geometry != prepared.on_grids[0].geometry


def test_like_names_a_dataset_of_the_joint(typed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = str(typed / "raw/Dataset001_CAMUS/imagesTs")
    assert predict(["-i", clips, "-o", str(tmp_path / "out"), "--like", "Chamus", "--device", "cpu"]) == 1
    assert "choose one of CAMUS, EchoNet" in capsys.readouterr().err


def test_the_best_configuration_counts_each_dataset_alike(typed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_best_configuration_command(["EchoNet+CAMUS", "-f", "0", "-np", "0"]) == 0
    (score,) = read_json(typed / "results" / NAME / "best_configuration.json")["scores"]
    assert score["mean_dice"] == pytest.approx(np.mean(list(score["mean_dice_by_dataset"].values())))
    assert set(score["mean_dice_by_dataset"]) == {"CAMUS", "EchoNet"}
    validation = typed / "results" / NAME / MODEL / "fold_0" / "validation"
    references = typed / "preprocessed" / NAME / "gt_segmentations"
    command = [str(validation), str(references), "-d", NAME, "-np", "0", "-o", str(typed / "summary.json")]
    evaluate_folder_command(command)
    assert "LV, end-diastole" in capsys.readouterr().out  # the joint's cases are known by their names
    assert compare_command([NAME]) == 1
    assert "a comparison needs two methods" in capsys.readouterr().err


def test_doing_it_again_changes_nothing_and_other_folds_are_refused(typed: Path, capsys) -> None:
    home = typed / "preprocessed" / NAME
    before = {path: path.stat().st_mtime_ns for path in (home / "EchoPlans_64x64").iterdir()}
    assert preprocess(["-d", "4+1", "-np", "0"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (home / "EchoPlans_64x64").iterdir()} == before
    splits = read_json(home / "splits_final.json")
    write_json(home / "splits_final.json", splits[:1])
    assert plan_experiment(["-d", NAME, "-tr", "UNetTrainer", "--size", "64"]) == 1
    assert "the cases no longer give the splits" in capsys.readouterr().err
    write_json(home / "splits_final.json", splits)


@pytest.mark.parametrize("name", ["CAMUS+EchoNet", "EchoNet+CAMUS", "4+1", "Dataset004_EchoNet+CAMUS"])
def test_a_joint_has_one_name_whatever_the_order(root: Path, name: str) -> None:
    folders = Folders(root / "raw", root / "preprocessed", root / "results")
    assert folders.find_preprocessed(name) == root / "preprocessed" / NAME
    assert folders.find_results(name) == root / "results" / NAME
    assert [path.name for path in folders.find_sources(name)] == ["Dataset001_CAMUS", "Dataset004_EchoNet"]
    assert root / "results" / NAME in dataset_folders(folders.results)


def test_joints_that_cannot_be(root: Path) -> None:
    folders = Folders(root / "raw", root / "preprocessed", root / "results")
    with pytest.raises(EchoPlanError, match=r"there is no dataset 'Nothing'.* there are CAMUS, EchoNet"):
        MultiDataset.read(folders, "CAMUS+Nothing")
    with pytest.raises(EchoPlanError, match="names a dataset twice"):
        folders.find_sources("CAMUS+1")
    with pytest.raises(EchoPlanError, match="several raw datasets"):
        folders.find_raw(NAME)
    with pytest.raises(EchoPlanError, match=r"no dataset 'CAMUS\+Other' here.*convert Other first"):
        folders.find_preprocessed("CAMUS+Other")
    with pytest.raises(EchoPlanError, match=r"do you mean EchoNet or CAMUS.EchoNet\? If not, convert EcoNet first"):
        folders.find_results("CAMUS+EcoNet")
    atrium = DatasetDescription("B", {"background": 0, "LA": 1}, target="LA")
    with pytest.raises(EchoPlanError, match="measure different structures: LV in A, LA in B"):
        shared_labels({"A": DatasetDescription("A"), "B": atrium})


def test_labels_are_matched_by_name() -> None:
    first = DatasetDescription("A", {"background": 0, "MYO": 1, "LV": 2, "LA": 3})
    second = DatasetDescription("B", {"background": 0, "LA": 1, "LV": 2})
    assert shared_labels({"A": first, "B": second}) == {"background": 0, "LV": 1, "LA": 2}


def test_names_that_would_mix_two_datasets_cases_are_refused(tmp_path: Path) -> None:
    for number, name in enumerate(("A", "A__B"), start=1):
        EchoDataset(tmp_path / f"raw/Dataset{number:03d}_{name}", DatasetDescription(name), ()).write()
    with pytest.raises(EchoPlanError, match="cases of A__B and A could not be told apart"):
        MultiDataset.read(Folders(tmp_path / "raw", tmp_path / "p", tmp_path / "r"), "A+A__B")


def test_one_dataset_is_read_like_several(root: Path) -> None:
    alone = MultiDataset.read(Folders(root / "raw", root / "preprocessed", root / "results"), "4")
    (source,) = alone.sources
    assert (alone.name, source.name, alone.several) == ("Dataset004_EchoNet", "EchoNet", False)
    assert alone.cases == source.raw.cases and source.target == 1
    mask = np.array([[[0, 1, 255]]], np.uint8)
    assert source.relabelled(mask) is mask


def test_a_clip_resembles_the_dataset_of_its_size(root: Path) -> None:
    plan = Plan.read(root / "preprocessed" / NAME / "EchoPlans.json").resolve("UNetTrainer")
    clip = Clip(np.full((2, 72, 96), 90, np.uint8))
    assert most_alike(plan, clip) == "CAMUS"
    assert most_alike(plan, replace(clip, frames=np.full((2, 64, 64), 90, np.uint8))) == "EchoNet"
