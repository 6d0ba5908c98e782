"""What an error tells to do is what helps: by the command that is at work, and by how far the user has come."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest
import torch

from echoplan import scripts
from echoplan.dataset import DatasetDescription
from echoplan.errors import EchoPlanError
from echoplan.extras import how_to_install
from echoplan.files import write_json
from echoplan.inference.ensemble import PredictorMember
from echoplan.inference.foundation.zero_shot import _labelled
from echoplan.networks.weights import find_weights, no_downloads, weights_options
from echoplan.plans import Configuration, Decision, Plan
from echoplan.training.model_folder import ModelFolder

ROOT = Path(__file__).parents[1]


@pytest.fixture
def root(tmp_path, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"echoplan_{name}", raising=False)
    monkeypatch.setenv("ECHOPLAN_ROOT", str(tmp_path / "root"))
    return tmp_path / "root"


def said(command, arguments, capsys):
    """The one line that a command which fails leaves, and its exit status."""
    try:
        status = getattr(scripts, command)([str(argument) for argument in arguments])
    except SystemExit as stopped:
        status = stopped.code
    line = capsys.readouterr().err
    assert status in (1, 2) and line.startswith("error: ") and line.count("\n") == 1, line
    assert "Traceback" not in line and "usage:" not in line
    return line


# The command line ----------------------------------------------------------------------------------------------------


def test_nnunets_habit_is_answered(root, capsys):
    line = said("train", ["Phantom", "2d", "0"], capsys)
    assert "'2d' is no fold but a configuration" in line and "give the dataset and a fold's number, or all" in line
    assert "is no fold" in said("compare_prompts", ["Phantom", "3d_fullres", "0"], capsys)


def test_what_is_not_there_is_said_in_one_line(root, capsys):
    assert "argument -i/--input: nosuch does not exist" in said("predict", ["-i", "nosuch", "-o", "out"], capsys)
    assert "do you mean --overwrite?" in said("train", ["Phantom", "0", "--overwrit"], capsys)


COMMANDS = [("make_phantom", ["-d", "P", "--patients", 1, "--size", 64, "-np", 0]), ("train", ["P", 0]),
            ("find_best_configuration", ["P"]), ("zero_shot", ["P", "-m", "sam"])]  # fmt: skip


@pytest.mark.parametrize(("command", "arguments"), COMMANDS)
def test_a_root_that_is_a_file(root, capsys, command, arguments):
    root.write_text("no folder")
    line = said(command, arguments, capsys)
    assert "a file lies where a folder should be" in line and str(root) in line and "ECHOPLAN_ROOT" in line


def test_an_output_folder_that_is_a_file(root, tmp_path, capsys):
    (tmp_path / "clips").mkdir()
    (tmp_path / "out").write_text("no folder")
    write_json(tmp_path / "pp.json", {"steps": []})
    from echoplan.imageio import Clip, write_mask

    mask = torch.zeros(2, 20, 20, dtype=torch.uint8).numpy()
    write_mask(tmp_path / "masks" / "a.nii.gz", mask, like=Clip(mask))
    arguments = ["-i", tmp_path / "masks", "-o", tmp_path / "out", "--pp", tmp_path / "pp.json", "-np", 0]
    line = said("apply_postprocessing", arguments, capsys)
    assert f"{tmp_path / 'out'}" in line and "lies where a folder should be" in line


def test_make_phantom_where_nothing_may_be_written(root, capsys, monkeypatch):
    def forbidden(self, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", forbidden)
    line = said(*COMMANDS[0], capsys)
    assert "may not be written or read. What to do: choose a folder of yours." in line and "Dataset001_P" in line


# Weights -------------------------------------------------------------------------------------------------------------


def test_missing_weights_are_told_with_the_options_of_the_command(tmp_path, monkeypatch):
    monkeypatch.delenv("ECHOPLAN_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    cases = [
        ((), "(--weights FILE); --set pretrained=false"),
        (("--weights TRAINER=FILE",), "(--weights TRAINER=FILE)"),
        (("", "--set pretrained=false"), "names; --set pretrained=false"),
    ]
    for options, told in cases:
        with no_downloads(), pytest.raises(EchoPlanError) as error:
            if options:
                with weights_options(*options):
                    find_weights("medsam_vit_b")
            find_weights("medsam_vit_b")
        assert told in error.value.remedy
        assert ("--set" in error.value.remedy) is ("--set" in told)


def test_zero_shot_without_a_connection_names_its_own_options(tmp_path, monkeypatch):
    from echoplan.inference.foundation.networks import FoundationModel

    monkeypatch.delenv("ECHOPLAN_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with no_downloads(), pytest.raises(EchoPlanError) as error:
        FoundationModel("lite_medsam").load()
    assert "(--weights FILE)" in error.value.remedy and "--set" not in error.value.remedy


# Folds ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(root):
    """model(finished, begun, plans_name) -> a model folder."""

    def make(finished=(), begun=(), plans_name="EchoPlans"):
        folder = root / "results" / "Dataset001_Phantom" / f"UNetTrainer__{plans_name}__frame"
        frame = Configuration("frame", {"size": Decision([64, 64], "for the test")})
        unet = {"UNetTrainer": Configuration("UNetTrainer", {}, "frame")}
        Plan("Dataset001_Phantom", plans_name, {"frame": frame}, unet).write(folder / "plans.json")
        write_json(folder / "dataset.json", DatasetDescription("Phantom").to_dict())
        for kind, folds in (("final", finished), ("latest", begun)):
            for fold in folds:
                (folder / f"fold_{fold}").mkdir(exist_ok=True)
                (folder / f"fold_{fold}" / f"checkpoint_{kind}.pth").write_bytes(b"")
        return folder

    return make


def load_error(folder, folds):
    with pytest.raises(EchoPlanError) as error:
        PredictorMember.load(folder, folds=folds, device=torch.device("cpu"))
    return error.value


def test_a_fold_that_was_begun_goes_on_with_c(model, root, capsys):
    folder = model(begun=[1])
    assert load_error(folder, None).remedy == "echoplan_train Phantom 1 -tr UNetTrainer --c"
    for arguments in (["-i", ROOT, "-o", "out"], ["-i", ROOT, "-o", "out", "-d", "Phantom"]):
        line = said("predict", arguments, capsys)
        assert "trained to its end" in line and "echoplan_train Phantom 1 -tr UNetTrainer --c" in line
    folder = model(finished=[0], begun=[0, 2])
    assert load_error(folder, [2]).remedy == "echoplan_train Phantom 2 -tr UNetTrainer --c"


def test_a_fold_that_nobody_has_is_not_to_be_trained_first(model):
    error = load_error(model(finished=[0, 1]), [9])
    assert "fold 9 of UNetTrainer is not trained" in error.problem
    assert error.remedy.startswith("predict with -f 0 1, or, if the dataset has such a fold, train it: echoplan_train")


def test_the_command_that_trains_names_another_plan(model):
    folder = ModelFolder.read(model(plans_name="Small"))
    assert folder.training_command(3) == "echoplan_train Phantom 3 -tr UNetTrainer -p Small"
    assert folder.training_command(3, "--val").endswith(" -p Small --val")


def test_zero_shot_of_a_fold_that_is_not_there(tmp_path):
    from echoplan.dataset import Case, EchoDataset

    raw = EchoDataset(tmp_path / "Dataset001_P", DatasetDescription("P"), (Case("a", label="a.nii.gz"),))
    splits = [{"train": [], "val": ["a"]}]
    for split, known, remedy in (("train", splits, "name folds that there are, or leave -f out"),
                                 ("train", [], "plan the dataset (echoplan_plan_and_preprocess -d P), or leave -f out"),
                                 ("test", [], "leave -f out")):  # fmt: skip
        with pytest.raises(EchoPlanError) as error:
            _labelled(raw, split, [9], known)
        assert error.value.remedy == remedy


# Extras --------------------------------------------------------------------------------------------------------------


def test_extras_are_installed_from_a_checkout_and_all_of_them_are_there():
    assert how_to_install("dicom").endswith("pip install '.[dicom]'")
    files = [path for place in ("echoplan", "inference", "docs") for path in (ROOT / place).rglob("*.[pm][yd]")]
    texts = {path: path.read_text(encoding="utf-8") for path in [*files, ROOT / "README.md"]}
    assert [path.name for path, text in texts.items() if re.search(r"pip install '?echoplan", text)] == []
    named = {name for text in texts.values() for name in re.findall(r"how_to_install\([\"'](\w+)", text)}
    offered = (ROOT / "setup.cfg").read_text().partition("[options.extras_require]")[2]
    assert named and all(re.search(rf"^{name} *=", offered, re.M) for name in named)
