"""`--protocol paper`: planned, trained and judged as the papers did, in the layouts of the public datasets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from echoplan.cli import folders
from echoplan.dataset import Case, DatasetDescription, EchoDataset
from echoplan.errors import EchoPlanError
from echoplan.experiment_planning.splits import paper_split
from echoplan.imageio import read_mask
from echoplan.plans import Plan
from echoplan.scripts import convert_dataset, make_phantom, plan_and_preprocess, train
from echoplan.training.train_fold import FoldJob
from echoplan.training.validation import judge_sampled

TRAINER = "PKEchoNetR18Trainer"


@pytest.fixture(scope="module")
def camus(tmp_path_factory):
    """Ten densely labelled phantom patients in CAMUS' layout, planned as the paper's and trained for an epoch."""
    root = tmp_path_factory.mktemp("paper")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ECHOPLAN_ROOT", str(root))
        assert make_phantom(["-d", "CAMUS", "--out", str(root / "release"), "--layout", "camus", "--patients", "10",
                             "--size", "64", "-np", "0"]) == 0  # fmt: skip
        assert convert_dataset(["camus", str(root / "release"), "-d", "CAMUS", "-np", "0"]) == 0
        assert plan_and_preprocess(["-d", "CAMUS", "-tr", TRAINER, "--protocol", "paper", "-p", "Paper", "--size", "32",
                                    "--frames", "4", "-np", "0"]) == 0  # fmt: skip
        assert train(["CAMUS", "all", "-tr", TRAINER, "-p", "Paper", "--epochs", "1", "-np", "0",
                      "--set", "pretrained=false"]) == 0  # fmt: skip
    return root


def clips(*patients):
    return {f"patient{number:04d}_{view}" for number in patients for view in ("2CH", "4CH")}


def test_the_plan_says_what_the_paper_did(camus):
    plan = Plan.read(camus / "preprocessed/Dataset001_CAMUS/Paper.json").resolve(TRAINER)
    assert (plan.protocol, plan.crop, plan.judging, plan.split) == ("stretch", False, "sampled", "number")
    assert plan.settings == {"supervision": "ed_es"}


def test_patients_are_dealt_out_by_their_numbers(camus):
    (parts,) = json.loads((camus / "preprocessed/Dataset001_CAMUS/splits_number.json").read_text())
    assert {part: set(cases) for part, cases in parts.items()} == {
        "train": clips(*range(1, 8)), "val": clips(8), "test": clips(9, 10),
    }  # fmt: skip


def test_the_frames_that_the_network_is_given_are_judged_on_its_grid(camus):
    (fold,) = (camus / "results/Dataset001_CAMUS").glob(f"{TRAINER}__Paper__clip/fold_*")
    debug = json.loads((fold / "debug.json").read_text())
    assert debug["settings"]["supervision"] == "ed_es" and len(debug["train"]) == 14
    for part, names in (("validation", clips(8)), ("test", clips(9, 10))):
        summary = json.loads((fold / part / "summary.json").read_text())
        assert set(summary["per_case"]) == names and summary["frames"] == 4 * len(names)
        for name, judged in summary["per_case"].items():
            mask = read_mask(fold / part / f"{name}.nii.gz")
            assert mask.shape == read_mask(fold / part / "references" / f"{name}.nii.gz").shape == (4, 32, 32)
            assert {judged["ed_frame"], judged["es_frame"]} == {0, 3}
            assert np.count_nonzero(read_mask(fold / part / "references" / f"{name}.nii.gz"))
        assert (fold / part / "ef.csv").is_file()


class Listener(nn.Module):
    """Finds nothing, and keeps what it is given."""

    input_normalisation = "grey"

    def __init__(self):
        super().__init__()
        self.weight, self.heard = nn.Parameter(torch.zeros(1)), []

    def forward(self, clip):
        self.heard.append(clip)
        return clip * 0 - 1


def test_a_network_is_judged_on_the_intensities_that_it_learnt_on(camus, monkeypatch, tmp_path):
    monkeypatch.setenv("ECHOPLAN_ROOT", str(camus))
    setup = FoldJob("CAMUS", 0, trainer=TRAINER, plans_name="Paper").setup(folders())
    network = Listener().eval()
    judge_sampled(network, setup, setup.val, tmp_path)
    assert setup.plan.normalisation == "zscore_sector"
    assert all(clip.min() >= 0 and clip.max() > 100 for clip in network.heard)


def dataset(*cases):
    return EchoDataset(Path("raw"), DatasetDescription("Own"), tuple(Case(*case, label="m") for case in cases))


def test_a_split_keeps_patients_together_and_counts_numbers():
    cases = [(f"p{number}_{view}", f"p{number}", "i") for number in (10, 2, 9, 1, 5) for view in "ab"]
    parts = paper_split(dataset(*cases), "number")
    assert parts == {"train": ["p1_a", "p1_b", "p2_a", "p2_b", "p5_a", "p5_b"], "val": ["p9_a", "p9_b"],
                     "test": ["p10_a", "p10_b"]}  # fmt: skip


def test_a_split_that_the_dataset_does_not_have_is_refused():
    with pytest.raises(EchoPlanError, match="by official has no labelled case for val and test"):
        paper_split(dataset(("a", "p1", "i"), ("b", "p2", "i")), "official")
