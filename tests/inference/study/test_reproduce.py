"""echoplan_reproduce: each paper's tables at toy size, beside what was printed."""

from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import pytest

from echoplan.errors import Terminated
from echoplan.experiment_planning import MemoryModel, commands
from echoplan.inference.study import reproduce as reproduce_module
from echoplan.inference.study import reproduced
from echoplan.inference.study.grid import StudyRequest
from echoplan.inference.study.published import CAMUS, ECHONET, PAPERS
from echoplan.inference.study.reproduce import cells_of_tables
from echoplan.inference.study.reproduced import noise_of
from echoplan.networks import complexity
from echoplan.scripts import convert_dataset, make_phantom, reproduce
from echoplan.training.methods import find_method
from echoplan.training.metrics import TrainingLog
from echoplan.training.trainer import Trainer


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Phantoms in the layouts of CAMUS and EchoNet-Dynamic, converted."""
    root = tmp_path_factory.mktemp("reproduce")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ECHOPLAN_ROOT", str(root))
        for name, layout, folder in (("CAMUS", "camus", "camus"), ("EchoNet", "echonet_dynamic", "echonet")):
            tests = ["--test_patients", "2"] if layout == "echonet_dynamic" else []
            assert make_phantom(["-d", name, "--out", str(root / folder), "--layout", layout, "--patients", "5",
                                 "--size", "64", "-np", "0", *tests]) == 0  # fmt: skip
            assert convert_dataset([layout, str(root / folder), "-d", name, "-np", "0"]) == 0
    return root


@pytest.fixture
def run(root, monkeypatch):
    monkeypatch.setenv("ECHOPLAN_ROOT", str(root))
    planned = partial(commands.make_plan, measure=lambda method, **_: MemoryModel(0.1, 0.01, "mixed"))
    monkeypatch.setattr(commands, "make_plan", planned)  # a step is not simulated for its memory
    monkeypatch.setattr(TrainingLog, "draw", lambda log: None)
    monkeypatch.setattr(reproduced, "seconds_of", partial(complexity.seconds_of, least=0.0))
    return lambda *words: reproduce([str(word) for word in words])


def test_every_row_names_a_trainer_and_settings_that_there_are():
    for paper in PAPERS.values():
        for table in paper.tables:
            for row in table.rows:
                method = find_method(row.trainer)
                settings = dict(setting.split("=") for setting in row.settings)
                assert not set(settings) - set(method.recipe.to_dict())


@pytest.mark.parametrize(
    ("paper", "dataset"),
    [("e3sam2", "CAMUS"), ("echoforge", "EchoNet"), ("pkechonet", "CAMUS"), ("sam_echo", "EchoNet"),
     ("sam2_ultrasound", "EchoNet")],
)  # fmt: skip
def test_a_dry_run_lists_runs_hours_and_what_is_missing(run, root, request, capsys, paper, dataset):
    weights = ("--weights", f"PKEchoNetTrainer={__file__}") if paper == "pkechonet" else ()  # no weights
    small = ()
    if not paper.startswith("sam"):  # those name their sizes
        request.getfixturevalue("slim_networks")
        small = ("--size", 64, "--frames", 2)
    assert run(paper, "-d", dataset, "--dry_run", "--device", "cpu", "-p", "Dry", *small, *weights) == 0
    shown = capsys.readouterr().out
    assert PAPERS[paper].citation in shown and "3 trainings, about" in shown
    assert ("missing for CAMUS: the table also tests on it" in shown) == (paper == "sam_echo")
    assert "missing for" in shown  # weights cannot be had in tests
    assert (f"{__file__}: the weights cannot be read" in shown) == bool(weights)
    assert not list(root.glob("preprocessed/*/Dry.json"))
    assert ("'sam2.1_hiera_tiny'" in shown and "'sam2.1_hiera_large'" in shown) == (paper == "sam2_ultrasound")


TOY = ("--size", 32, "--frames", 2, "--epochs", 1, "--set", "iterations_per_epoch=1", "--set", "batch_size=2",
       "--set", "precision=float32", "--device", "cpu", "-np", 0, "--seeds", 0)  # fmt: skip
RANDOM = ("--set", "pretrained=false")
CHEAP = {
    "e3sam2": RANDOM,
    "sam2_ultrasound": RANDOM,
    "echoforge": (*RANDOM, "--set", "channels=32", "--set", "query_layers=2"),
    "pkechonet": RANDOM,
}


def results(root, dataset, paper):
    (file,) = (root / "results").glob(f"*_{dataset}/studies/reproduce_{paper}/reproduced.csv")
    return pd.read_csv(file, dtype={"table": str})


@pytest.mark.parametrize(("paper", "dataset"), [("e3sam2", "CAMUS"), ("echoforge", "CAMUS"), ("pkechonet", "EchoNet")])
def test_each_table_is_trained_tested_and_printed_beside_the_paper_s(run, root, slim_networks, capsys, paper, dataset):
    assert run(paper, "-d", dataset, *TOY, *CHEAP[paper]) == 0
    shown = capsys.readouterr().out
    rows = results(root, dataset, paper)
    published = CAMUS if dataset == "CAMUS" else ECHONET
    expected = [(table.number, row.name) for table in PAPERS[paper].tables if table.dataset == published
                for row in table.rows]  # fmt: skip
    assert list(dict.fromkeys(zip(rows["table"], rows["row"], strict=True))) == list(dict.fromkeys(expected))
    assert rows.loc[rows["figure"] == "Dice, %", "here"].between(0, 100).all()
    assert rows["published"].notna().all()
    spread = rows.loc[rows["published_sd"].notna(), "sd"]
    assert len(spread) == {"e3sam2": 8}.get(paper, 0) and spread.between(0, 100).all()
    assert ("SD, published" in shown) == (paper == "e3sam2")
    (study,) = root.glob(f"results/*_{dataset}/studies/reproduce_{paper}")
    assert all("__T2__" in cell.name for cell in study.glob("cells/*"))
    assert [store.name for store in root.glob("preprocessed/*/Paper_*_nearest")] == ["Paper_32x32_nearest"]
    for leak in PAPERS[paper].leaks:
        assert leak in shown


def test_what_is_trained_and_tested_stays(run, root, slim_networks, monkeypatch, capsys):
    words = ("pkechonet", "-d", "CAMUS", *TOY, *RANDOM, "--tables", "5")
    assert run(*words) == 0
    before = results(root, "CAMUS", "pkechonet")
    monkeypatch.setattr(Trainer, "train_step", None)
    monkeypatch.setattr(reproduce_module, "judge_sampled", None)
    assert run(*words) == 0
    pd.testing.assert_frame_equal(results(root, "CAMUS", "pkechonet"), before)
    assert run(*words, "--weights", f"PKEchoNetTrainer={__file__}") == 1
    assert "begun with another file of weights for PKEchoNetTrainer" in capsys.readouterr().err


def test_a_study_with_true_boxes_and_another_dataset(run, root, slim_networks, capsys):
    random = [("--set", f"{name}:{setting}") for name, setting in product(
        ("SAMTrainer", "SAM1024Trainer", "MedSAM1024Trainer"), ("pretrained=false", "encoder_size=32"))]  # fmt: skip
    words = [word for pair in random for word in pair]
    words += ["--set", "EchoNetTrainer:pretrained=false", "--set", "ResUNetTrainer:pretrained=false"]
    assert run("sam_echo", "-d", "EchoNet", *TOY, *words, "--external", "CAMUS") == 1
    shown = capsys.readouterr()
    assert "untrained/SAMTrainer/tested/CAMUS__boxes__px: the weights" in shown.err  # its weights cannot be had here
    assert "Mayo Clinic" in shown.out
    rows = results(root, "EchoNet", "sam_echo").set_index("row")["here"]
    trained = [row.name for table in PAPERS["sam_echo"].tables for row in table.rows if not row.untrained]
    assert rows[trained].notna().all()
    assert rows[["EchoNet ed_es: SAM, zero-shot", "A2C ed_es: MedSAM, zero-shot"]].isna().all()


def rows_with(published, seed_sd):
    names = [row.name for row in PAPERS["e3sam2"].chosen(CAMUS, ("3",))[0].rows][: len(published)]
    figures = {"row": names, "published": published, "here": published, "seed_sd": seed_sd}
    return pd.DataFrame({"figure": "Dice, %", **figures})


def test_gaps_below_the_noise_of_a_seed_are_said_to_be_so():
    table = PAPERS["e3sam2"].chosen(CAMUS, ("3",))[0]
    (words,) = noise_of(table, rows_with([93.24, 93.27, 93.34, 93.42], 0.076))
    assert words == (
        "Table 3: the published gaps of Dice from row to row are 0.03 to 0.08 points; one seed's SD here is up to "
        "0.08: 2 of 3 gaps are below it."
    )
    (words,) = noise_of(table, rows_with([93.24, 93.27], np.nan))
    assert "one seed" in words


@pytest.mark.parametrize(("words", "problem"), [
    (("--tables", 9), "there is no table 9 of CAMUS"),
    (("--tables", 3, "--set", "E3SAM2SmalTrainer:epochs=3"), "does not train: E3SAM2SmalTrainer"),
    (("--weights", f"E3SAM2SmalTrainer={__file__}"), "does not train: E3SAM2SmalTrainer"),
    (("--seeds", 1, 1), "a seed is named twice"),
])  # fmt: skip
def test_what_the_paper_does_not_have_is_refused(run, capsys, words, problem):
    assert run("e3sam2", "-d", "CAMUS", *words, "--dry_run") == 1
    assert problem in capsys.readouterr().err


def test_sizes_and_speed_need_no_training(run, capsys):
    assert run("e3sam2", "-d", "CAMUS", "--tables", "5", "--dry_run", "--device", "cpu") == 0
    assert "nothing to train" in capsys.readouterr().out


def test_no_network_is_trained_twice():
    request = StudyRequest("D", ("SAM2Trainer",))
    for paper in PAPERS.values():
        for dataset in (CAMUS, ECHONET):
            cells = cells_of_tables([table for table in paper.tables if table.dataset == dataset], request)
            recipes = [find_method(cell.trainer).with_settings(request.settings_of(cell)).recipe for cell in cells]
            kinds = [(cell.trainer, recipe) for cell, recipe in zip(cells, recipes, strict=True)]
            assert all(kind not in kinds[:index] for index, kind in enumerate(kinds))


def test_the_true_point_is_told_wherever_it_is_asked_for(run, root, slim_networks, monkeypatch):
    told = []
    monkeypatch.setattr(reproduce_module, "judge_sampled", lambda *_, prompt, **__: told.append(prompt))
    words = ("e3sam2", "-d", "EchoNet", *TOY, *RANDOM, "--set", "E3SAM2SmallTrainer:true_point_at_test=true")
    assert run(*words, "--name", "Pointed") == 0
    assert told[0] is None and told[1].kind == "pixel"


def test_a_termination_while_it_plans_ends_it(run, monkeypatch, capsys):
    def terminated(arguments):
        raise Terminated

    monkeypatch.setattr("echoplan.inference.study.commands.plan_and_preprocess", terminated)
    assert run("e3sam2", "-d", "CAMUS", "-p", "Unplanned") == 75
    assert "run the same command again" in capsys.readouterr().err
