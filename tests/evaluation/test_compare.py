"""echoplan_compare as a user types it, and its figures against SciPy and plain loops."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from echoplan.dataset import Case, DatasetDescription, EchoDataset
from echoplan.errors import EchoPlanError
from echoplan.evaluation import COLUMNS, compare_methods, evaluate_cases, read_crossvalidation, segmentation_metrics
from echoplan.files import read_json, write_csv, write_json
from echoplan.imageio import Clip, read_mask, write_mask
from echoplan.scripts import compare as compare_command
from echoplan.scripts import evaluate_folder as evaluate_folder_command

SPACING = (0.8, 0.5)
PATIENTS = 8
FOLDS = {0: range(0, 4), 1: range(4, 8)}
METHODS = {"NearTrainer": (1.0, 4.0), "FarTrainer": (2.5, 9.0), "MiddleTrainer": (1.8, 6.0)}  # shift in px, EF error


@dataclass(frozen=True)
class Study:
    """A dataset with reference masks, and the cross-validation of three methods."""

    root: Path

    @property
    def references(self) -> Path:
        return self.root / "raw" / "Dataset001_Study" / "labelsTr"

    @property
    def results(self) -> Path:
        return self.root / "results" / "Dataset001_Study"

    def model(self, trainer: str) -> Path:
        return self.results / f"{trainer}__EchoPlans__frame"

    def masks(self, trainer: str) -> dict[str, Path]:
        return {path.name[: -len(".nii.gz")]: path for path in self.model(trainer).glob("fold_*/validation/*.nii.gz")}

    def dice(self, trainer: str, frames=(0, 2)) -> dict[str, list[float]]:
        """patient -> Dice of every frame asked for, from the masks themselves."""
        found: dict[str, list[float]] = {}
        for case, path in sorted(self.masks(trainer).items()):
            truth, guess = read_mask(self.references / path.name), read_mask(path)
            for frame in frames:
                metrics = segmentation_metrics(guess[frame], truth[frame], SPACING)
                found.setdefault(case[:2], []).append(metrics["dice"])
        return found

    def ef(self, trainer: str) -> tuple[list[float], list[float]]:
        rows = []
        for fold in FOLDS:
            with open(self.model(trainer) / f"fold_{fold}" / "validation" / "ef.csv", newline="") as stream:
                rows += list(csv.DictReader(stream))
        return [float(row["ef_percent"]) for row in rows], [float(row["reference_ef_percent"]) for row in rows]


def ellipse(top: float, left: float, scale: float) -> np.ndarray:
    rows, columns = np.mgrid[:60, :50]
    return ((((rows - top) / (18 * scale)) ** 2 + ((columns - left) / (11 * scale)) ** 2) < 1).astype(np.uint8)


def beat(random: np.random.Generator, shift: float) -> np.ndarray:
    """(3, 60, 50): end-diastole, a frame between, end-systole; each moved by a random way."""
    moves = random.normal(0, shift, (3, 2)) if shift else np.zeros((3, 2))
    pairs = zip(moves, (1.0, 0.8, 0.6), strict=True)
    return np.stack([ellipse(30 + row, 25 + column, scale) for (row, column), scale in pairs])


def write(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mask(path, mask, like=Clip(np.zeros(mask.shape, np.uint8), SPACING, 40.0))


def judge(folder, references, cases):
    summary = evaluate_cases(cases, folder, references, labels={"LV": 1}).summary()
    write_json(folder / "summary.json", summary)


def build(root: Path) -> Study:
    study, random = Study(root), np.random.default_rng(5)
    reference = {f"p{i}": 30.0 + 4.5 * i for i in range(PATIENTS)}
    cases = [
        Case(f"p{i}_{view}", f"p{i}", f"imagesTr/p{i}_{view}.nii.gz", view=view, ed_frame=0, es_frame=2,
             ef_percent=reference[f"p{i}"], quality=("Good", "Poor")[i % 2])
        for i in range(PATIENTS) for view in ("A2C", "A4C")
    ]  # fmt: skip
    EchoDataset(study.references.parent, DatasetDescription("Study"), tuple(cases)).write()
    truth = beat(random, 0)
    truth[1] = 255
    for case in cases:
        write(study.references / f"{case.case}.nii.gz", truth)
    for trainer, (shift, error) in METHODS.items():
        write_json(study.model(trainer) / "plans.json", {})
        for fold, members in FOLDS.items():
            folder = study.model(trainer) / f"fold_{fold}" / "validation"
            own = [case for case in cases if int(case.patient[1:]) in members]
            for case in own:
                write(folder / f"{case.case}.nii.gz", beat(random, shift))
            rows = [
                {"patient": f"p{i}", "cases": f"p{i}_A2C;p{i}_A4C", "method": "biplane", "volume_rule": "simpson",
                 "ef_percent": reference[f"p{i}"] + random.normal(0, error), "phases": "given;given",
                 "reference_ef_percent": reference[f"p{i}"]}
                for i in members
            ]  # fmt: skip
            write_csv(folder / "ef.csv", rows, COLUMNS)
            known = [replace(case, ed_frame=0, es_frame=2) for case in own]
            judge(folder, study.references, known)
    return study


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return build(tmp_path_factory.mktemp("study"))


@pytest.fixture
def study(made, tmp_path, monkeypatch):
    """A copy of the study that a test may spoil; file times are kept."""
    shutil.copytree(made.root, tmp_path / "root")
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"echoplan_{name}", raising=False)
    monkeypatch.setenv("ECHOPLAN_ROOT", str(tmp_path / "root"))
    return Study(tmp_path / "root")


@pytest.fixture
def predictions(study, tmp_path):
    """Two methods' masks in folders as echoplan_predict leaves them, not evaluated."""
    for trainer in ("NearTrainer", "FarTrainer"):
        for path in study.masks(trainer).values():
            (tmp_path / trainer).mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / trainer)
    return {trainer: tmp_path / trainer for trainer in ("NearTrainer", "FarTrainer")}


def typed(predictions, study, *more):
    named = [f"{name}={folder}" for name, folder in predictions.items()]
    return ["--predictions", *named, "--references", str(study.references), "-np", "0", *map(str, more)]


def table(page: str, title: str) -> list[list[str]]:
    """The rows of the Markdown table under a heading."""
    part = page.split(f"## {title}")[1].split("##")[0]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in part.splitlines() if "|" in line]
    return [rows[0], *rows[2:]]


def test_the_command_as_typed(study, tmp_path, capsys):
    out = tmp_path / "out"
    assert compare_command(["Study", "-tr", "NearTrainer", "FarTrainer", "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    page = (out / "comparison.md").read_text(encoding="utf-8")
    assert printed.startswith(page)
    assert "16 clips of 8 patients" in page
    head, *rows = table(page, "Segmentation of LV")
    assert head == ["phase", "method", "frames", "Dice, % ↑", "IoU, % ↑", "HD, mm ↓", "HD95, mm ↓", "ASSD, mm ↓"]
    assert [row[:3] for row in rows] == [
        [phase, method, frames]
        for phase, frames in (("all", "32"), ("ED", "16"), ("ES", "16"))
        for method in ("NearTrainer", "FarTrainer")
    ]
    for row, frames in zip(rows, ((0, 2), (0, 2), (0,), (0,), (2,), (2,)), strict=True):
        dice = 100 * np.concatenate(list(study.dice(row[1], frames).values()))
        assert row[3].strip("*") == f"{dice.mean():.2f} ± {dice.std(ddof=1):.2f}"
        assert row[3].startswith("**") == (row[1] == "NearTrainer")
    assert "<u>" not in page and "Holm" not in page
    assert {path.name for path in out.iterdir()} == {f"comparison.{end}" for end in ("md", "csv", "tex", "json")}


def test_ef_as_scipy_has_it(study, tmp_path):
    assert compare_command(["Study", "-tr", "NearTrainer", "FarTrainer", "-o", str(tmp_path)]) == 0
    head, *rows = table((tmp_path / "comparison.md").read_text(encoding="utf-8"), "Ejection fraction, predicted")
    assert head[1:] == ["patients", "failures", "Pearson r ↑", "bias → 0", "SD of differences ↓", "MAE ↓"]
    for row in rows:
        predicted, reference = map(np.array, study.ef(row[0]))
        difference = predicted - reference
        expected = ["8", "0", f"{stats.pearsonr(predicted, reference).statistic:.3f}", f"{difference.mean():.2f}",
                    f"{stats.tstd(difference):.2f}", f"{np.abs(difference).mean():.2f}"]  # fmt: skip
        assert [cell.strip("*").replace("−", "-") for cell in row[1:]] == expected


def test_tests_of_patients_as_scipy_has_them(study):
    methods, notes = read_crossvalidation(study.results, list(METHODS))
    found = compare_methods(methods, structure="LV", baseline="FarTrainer")
    assert notes == []
    whole = found.tests[found.tests["by"] == "all patients"]
    rows = {(row["measure"], row["method"]): row for row in whole.to_dict("records")}
    assert {method for _, method in rows} == {"NearTrainer", "MiddleTrainer"}
    assert {measure for measure, _ in rows} == {"dice", "iou", "hd_mm", "hd95_mm", "assd_mm", "ef_absolute_error"}
    means = {name: [np.mean(own) for _, own in sorted(study.dice(name).items())] for name in METHODS}
    errors = {name: np.abs(np.subtract(*study.ef(name))) for name in METHODS}
    p = []
    for measure, values in (("dice", means), ("ef_absolute_error", errors)):
        for method in ("NearTrainer", "MiddleTrainer"):
            row = rows[measure, method]
            p.append(stats.wilcoxon(values[method], values["FarTrainer"]).pvalue)
            assert (row["n"], row["baseline"]) == (8, "FarTrainer")
            assert row["p_signed_rank"] == pytest.approx(p[-1])
            expected = stats.mannwhitneyu(values[method], values["FarTrainer"]).pvalue
            assert row["p_rank_sum"] == pytest.approx(expected)
            difference = np.mean(values[method]) - np.mean(values["FarTrainer"])
            assert row["mean_difference"] == pytest.approx(difference)
    low, high = sorted(p[:2])
    holm = {low: min(1, 2 * low), high: min(1, max(2 * low, high))}
    assert rows["dice", "NearTrainer"]["p_signed_rank_holm"] == pytest.approx(holm[p[0]])
    assert rows["dice", "MiddleTrainer"]["p_signed_rank_holm"] == pytest.approx(holm[p[1]])
    assert found.per_patient.loc[("p3", "FarTrainer"), "dice"] == pytest.approx(means["FarTrainer"][3])
    error = found.per_patient.loc[("p3", "FarTrainer"), "ef_absolute_error"]
    assert error == pytest.approx(errors["FarTrainer"][3])


def test_all_trainers_with_second_best_and_holm(study, tmp_path):
    assert compare_command(["Study", "--baseline", "NearTrainer", "-o", str(tmp_path)]) == 0
    page = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    rows = {row[1]: row for row in table(page, "Segmentation of LV")[1:4]}
    assert rows["NearTrainer"][3].startswith("**")
    assert rows["MiddleTrainer"][3].startswith("<u>")
    assert re.fullmatch(r"[\d.]+ ± [\d.]+", rows["FarTrainer"][3])
    head, *tests = table(page, "Difference from NearTrainer")
    assert head[-3:] == ["p, signed-rank", "p, Holm", "p, rank-sum"]
    assert [row[1] for row in tests[:2]] == ["FarTrainer", "MiddleTrainer"]


def test_subgroups_are_shown(study, tmp_path):
    assert compare_command(["Study", "-tr", "NearTrainer", "FarTrainer", "-o", str(tmp_path)]) == 0
    content = read_json(tmp_path / "comparison.json")
    groups = {(row["by"], row["group"]): row for row in content["segmentation"] if row["method"] == "NearTrainer"}
    assert list(groups)[3:] == [
        ("view", "A2C"), ("view", "A4C"), ("image quality", "Good"), ("image quality", "Poor"),
        ("EF class", "< 40 %"), ("EF class", "40 to 49 %"), ("EF class", "≥ 50 %"),
        *(("view and phase", f"{view}, {phase}") for view in ("A2C", "A4C") for phase in ("ED", "ES")),
    ]  # fmt: skip
    tested = next(row for row in content["tests"] if row["group"] == "A4C, ES" and row["measure"] == "dice")
    means = {row["method"]: row["dice_mean"] for row in content["segmentation"] if row["group"] == "A4C, ES"}
    assert tested["n"] == 8
    assert tested["mean_difference"] == pytest.approx(means["FarTrainer"] - means["NearTrainer"])
    low = [each for patient in ("p0", "p1", "p2") for each in study.dice("NearTrainer")[patient]]
    assert groups["EF class", "< 40 %"]["dice_mean"] == pytest.approx(np.mean(low))
    assert groups["EF class", "< 40 %"]["frames"] == 12
    ef = [(row["by"], row["group"], row["n"]) for row in content["ejection"] if row["method"] == "FarTrainer"]
    assert ef[1:] == [("EF class", "< 40 %", 3), ("EF class", "40 to 49 %", 2), ("EF class", "≥ 50 %", 3),
                      ("image quality", "Good", 4), ("image quality", "Poor", 4)]  # fmt: skip


def test_csv_and_latex(study, tmp_path):
    assert compare_command(["Study", "-o", str(tmp_path)]) == 0
    with open(tmp_path / "comparison.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    first = rows[0]
    dice = np.concatenate(list(study.dice("FarTrainer").values()))
    assert (first["table"], first["group"], first["method"]) == ("segmentation", "all", "FarTrainer")
    assert (float(first["dice_mean"]), float(first["dice_sd"])) == pytest.approx((dice.mean(), dice.std(ddof=1)))
    ef = next(row for row in rows if row["table"] == "ejection_fraction")
    assert float(ef["bias_95_low"]) < float(ef["bias"]) < float(ef["bias_95_high"])
    test = next(row for row in rows if row["table"] == "paired_test")
    assert float(test["interval_95_low"]) < float(test["mean_difference"]) < float(test["interval_95_high"])
    latex = (tmp_path / "comparison.tex").read_text(encoding="utf-8")
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 6
    assert latex.count("{") == latex.count("}")
    assert r"\textbf{" in latex and r"\underline{" in latex and r"$\pm$" in latex and r"$\geq$ 50 \%" in latex
    for layout, body in re.findall(r"\\begin{tabular}{(\w+)}(.*?)\\end{tabular}", latex, re.DOTALL):
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {line.count(" & ") + 1 for line in lines} == {len(layout)}
    assert latex.isascii() or all(line.startswith("%") for line in latex.splitlines() if not line.isascii())


def test_only_folds_that_all_have(study, capsys):
    shutil.rmtree(study.model("FarTrainer") / "fold_1")
    assert compare_command(["Study", "-tr", "NearTrainer", "FarTrainer"]) == 0
    page = capsys.readouterr().out
    assert "8 clips of 4 patients" in page
    assert "NearTrainer: fold 1 left out" in page
    shutil.rmtree(study.model("NearTrainer") / "fold_0")
    assert compare_command(["Study", "-tr", "NearTrainer", "FarTrainer"]) == 1
    error = capsys.readouterr().err
    assert "no validated fold in common (NearTrainer: 1; FarTrainer: 0)" in error


def spoil(file: Path, change) -> None:
    content = read_json(file)
    change(content)
    write_json(file, content)


def test_other_cases_are_an_error_that_names_them(study, capsys):
    file = study.model("FarTrainer") / "fold_0" / "validation" / "summary.json"
    spoil(file, lambda content: content["per_case"].pop("p1_A4C"))
    assert compare_command(["Study", "-tr", "NearTrainer", "FarTrainer"]) == 1
    assert "FarTrainer has no result of 1 of the cases compared: p1_A4C" in capsys.readouterr().err
    assert compare_command(["Study", "-tr", "FarTrainer", "NearTrainer"]) == 1
    assert "FarTrainer has no result of 1 of the cases compared: p1_A4C" in capsys.readouterr().err


def test_other_references_are_an_error(study, capsys):
    file = study.model("FarTrainer") / "fold_1" / "validation" / "summary.json"
    spoil(file, lambda content: content["per_case"]["p5_A2C"]["frames"][0]["LV"].update(reference_pixels=1))
    assert compare_command(["Study", "-tr", "NearTrainer", "FarTrainer"]) == 1
    assert "not judged against the same references in 1 cases: p5_A2C" in capsys.readouterr().err


def test_cases_that_no_method_could_predict_are_named(study, capsys):
    for trainer in METHODS:
        file = study.model(trainer) / "fold_0" / "validation" / "summary.json"
        spoil(file, lambda content: (content["per_case"].pop("p0_A2C"), content["missing"].append("p0_A2C")))
    assert compare_command(["Study"]) == 1  # as every command whose work left something out
    page, said = capsys.readouterr()
    assert "left out: p0_A2C." in page and "p0_A2C: there is no prediction" in said
    assert "15 clips of 8 patients" in page


def test_no_case_at_all_is_an_error(study, capsys):
    for file in study.results.glob("*/fold_*/validation/summary.json"):
        spoil(file, lambda content: content["per_case"].clear())
    assert compare_command(["Study"]) == 1
    assert "no case was judged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["Study", "-tr", "NearTrainer", "OtherTrainer"], "OtherTrainer is not trained"),
        (["Study", "-tr", "NearTrainer"], "needs two methods, there is one"),
        (["Study", "-tr", "NearTrainer", "a.py:NearTrainer"], "needs two methods, there is one"),
        (["Study", "--baseline", "Other"], "no method 'Other' to be the baseline"),
        (["Study", "--structure", "LA"], "no figures of 'LA'"),
        (["Nowhere"], "no dataset 'Nowhere'"),
    ],
)
def test_errors_a_user_can_act_on(study, capsys, words, problem):
    assert compare_command(words) == 1
    error = capsys.readouterr().err
    assert problem in error and "What to do" in error


def test_models_of_one_trainer_are_told_apart(study, capsys):
    other = study.results / "NearTrainer__OtherPlans__frame"
    shutil.copytree(study.model("NearTrainer"), other)
    assert compare_command(["Study", "-tr", "NearTrainer", "FarTrainer"]) == 1
    assert other.name in capsys.readouterr().err
    assert compare_command(["Study", "-tr", study.model("NearTrainer").name, other.name]) == 0
    page = capsys.readouterr().out
    assert f"Difference from {study.model('NearTrainer').name}" in page
    head, *rows = table(page, "Difference from")
    assert all(row[head.index("p, signed-rank")] == "1.000" for row in rows)
    assert "**" not in page  # the same masks: no best one


@pytest.mark.parametrize(
    "words",
    [
        [], ["Study", "--predictions", "a=."], ["Study", "-d", "Study"], ["--predictions", "a=.", "b=."],
        ["--predictions", "a=.", "b=.", "--references", ".", "-tr", "NearTrainer"], ["--predictions", "."],
        ["--predictions", "a=.", "a=.", "--references", "."], ["--predictions", "a=nowhere", "--references", "."],
        ["Study", "--trainer", "NearTrainer"], ["--predictions", "a=.", "--references", "."],
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_errors(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        compare_command(words)
    assert stopped.value.code == 2
    assert "echoplan_compare --help" in capsys.readouterr().err


def test_folders_of_predictions_equal_cross_validation(study, predictions, tmp_path):
    assert compare_command(["Study", "-tr", "NearTrainer", "FarTrainer", "-o", str(tmp_path / "a")]) == 0
    assert compare_command(typed(predictions, study, "-d", "Study", "-o", tmp_path / "b")) == 0
    first, second = (read_json(tmp_path / name / "comparison.json") for name in "ab")
    assert second["segmentation"] == first["segmentation"]
    assert second["tests"] == [row for row in first["tests"] if row["measure"] != "ef_absolute_error"]
    assert second["ejection"] == []
    assert second["notes"] == ["No EF is compared: no method has an EF table (ef.csv, ef_report.csv)."]


def test_predictions_without_a_dataset(study, predictions, capsys):
    assert compare_command(typed(predictions, study)) == 0
    page = capsys.readouterr().out
    assert "The patient of 16 cases is not known" in page and "16 clips of 16 patients" in page
    assert "subgroups" not in page
    for trainer, folder in predictions.items():
        tables = [study.model(trainer) / f"fold_{fold}" / "validation" / "ef.csv" for fold in FOLDS]
        head, first, second = tables[0].read_text().splitlines()[0], *(file.read_text() for file in tables)
        (folder / "ef_report.csv").write_text(first + second.replace(head + "\n", "").replace(head + "\r\n", ""))
    assert compare_command(typed(predictions, study)) == 0
    page = capsys.readouterr().out
    assert "16 clips of 8 patients" in page and "EF by the rule simpson" in page
    assert table(page, "Ejection fraction, predicted")[1][1] == "8"


def test_a_summary_is_used_while_it_is_current(study, predictions, capsys):
    assert compare_command(typed(predictions, study, "-d", "Study")) == 0
    file = predictions["NearTrainer"] / "summary.json"
    assert file.is_file()
    spoil(file, lambda content: content["per_case"]["p0_A2C"]["frames"][0]["LV"].update(dice=0.123))
    methods = capsys.readouterr().out
    assert compare_command(typed(predictions, study, "-d", "Study")) == 0
    assert capsys.readouterr().out != methods  # the file was read, not made again
    mask = predictions["NearTrainer"] / "p0_A2C.nii.gz"
    later = file.stat().st_mtime + 10
    os.utime(mask, (later, later))
    assert compare_command(typed(predictions, study, "-d", "Study")) == 0
    assert capsys.readouterr().out == methods
    write_json(file, {"something": "else"})
    os.utime(file, (later + 1, later + 1))
    assert compare_command(typed(predictions, study, "-d", "Study")) == 1
    assert "no summary of an evaluation" in capsys.readouterr().err


def test_other_references_of_the_same_names_judge_anew(study, predictions, tmp_path):
    summaries = []
    for name in ("NearTrainer", "FarTrainer", "NearTrainer"):  # older than any summary
        others = tmp_path / f"others_{name}"
        others.exists() or shutil.copytree(study.references if name == "FarTrainer" else predictions[name], others)
        words = ["--references", str(others)]
        assert compare_command([*typed(predictions, study), *words]) == 0
        summaries.append(read_json(predictions["NearTrainer"] / "summary.json"))
    first, second, third = (summary["mean"]["LV"]["all"]["dice"]["mean"] for summary in summaries)
    assert first == third == 1 and second < 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.replace("simpson", "camus"), "the rules for volumes differ"),
        (lambda text: text.replace("p0,", "p9,"), "do not have the same patients"),
        (None, "FarTrainer has no EF table"),
    ],
)
def test_ef_that_cannot_be_compared_is_left_out_with_the_reason(study, capsys, change, reason):
    for fold in FOLDS:
        file = study.model("FarTrainer") / f"fold_{fold}" / "validation" / "ef.csv"
        if change is None:
            file.unlink()
        else:
            file.write_text(change(file.read_text()))
    assert compare_command(["Study", "-tr", "NearTrainer", "FarTrainer"]) == 0
    page = capsys.readouterr().out
    assert "No EF is compared" in page and reason in page
    assert "## Ejection fraction" not in page


def test_ef_without_references_or_with_a_broken_table(study):
    for file in study.results.glob("*/fold_*/validation/ef.csv"):
        with open(file, newline="") as stream:
            rows = [{**row, "reference_ef_percent": None} for row in csv.DictReader(stream)]
        write_csv(file, rows, COLUMNS)
    methods, _ = read_crossvalidation(study.results)
    assert "no reference EF is known" in compare_methods(methods, structure="LV").notes[-1]
    file.write_text("patient,ef_percent,reference_ef_percent\np0,much,50\n")
    with pytest.raises(EchoPlanError, match="no EF table"):
        read_crossvalidation(study.results)


def test_failed_measurements_and_empty_masks_are_counted(study, capsys):
    file = study.model("FarTrainer") / "fold_0" / "validation" / "ef.csv"
    with open(file, newline="") as stream:
        rows = list(csv.DictReader(stream))
    write_csv(file, [{**rows[0], "ef_percent": None, "failure": "no cavity"}, *rows[1:]], COLUMNS)
    write(file.parent / "p0_A2C.nii.gz", np.zeros((3, 60, 50), np.uint8))
    cases = [path.name[: -len(".nii.gz")] for path in file.parent.glob("*.nii.gz")]
    judge(file.parent, study.references, [Case(case, case, "") for case in cases])
    assert compare_command(["Study", "-tr", "NearTrainer", "FarTrainer"]) == 0
    page = capsys.readouterr().out
    assert [row[1:3] for row in table(page, "Ejection fraction, predicted")[1:]] == [["8", "0"], ["7", "1"]]
    assert table(page, "Difference from")[-1][2] == "7"
    assert "Frames predicted empty (Dice 0, distance the image's diagonal): FarTrainer 2." in page


def test_pixels_and_millimetres_stay_apart(study):
    methods, _ = read_crossvalidation(study.results, ["NearTrainer", "FarTrainer"])
    for method in methods:
        metric = method.scores["metric"]
        method.scores["metric"] = metric.mask(method.scores["case"] < "p4", metric.str.replace("_mm", "_px"))
    found = compare_methods(methods, structure="LV")
    whole = found.tests[found.tests["by"] == "all patients"]
    tests = dict(zip(whole["measure"], whole["n"], strict=True))
    assert (tests["dice"], tests["hd95_px"], tests["hd95_mm"]) == (8, 4, 4)
    assert found.segmentation.loc[0, ["hd95_px_mean", "hd95_mm_mean"]].notna().all()


def test_ef_is_measured_in_masks_by_the_rule_asked_for(study, predictions, tmp_path, capsys):
    how = ["-d", "Study", "--ef_method", "camus", "-o", str(tmp_path / "out")]
    assert compare_command([*typed(predictions, study), *how]) == 0
    page = capsys.readouterr().out
    assert "EF by the rule camus; end-diastole and end-systole given; reference EF from the reference masks" in page
    head, near, _ = table(page, "Ejection fraction, predicted")
    assert near[1:3] == ["8", "0"]
    with open(predictions["NearTrainer"] / "ef_camus.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    differences = [float(row["ef_percent"]) - float(row["reference_mask_ef_percent"]) for row in rows]
    assert near[head.index("bias → 0")].strip("*").replace("−", "-") == f"{np.mean(differences):.2f}"
    assert compare_command([*typed(predictions, study), *how, "--ef_reference", "table"]) == 0
    assert "reference EF from the dataset's table." in capsys.readouterr().out
    folder = predictions["FarTrainer"]
    assert evaluate_folder_command([str(folder), str(study.references), "-d", "Study", "--ef_method", "folland"]) == 0
    assert "EF by folland against the reference masks': 8 patients" in capsys.readouterr().out


def test_two_names_and_two_methods_are_needed(study):
    methods, _ = read_crossvalidation(study.results)
    with pytest.raises(EchoPlanError, match="two methods have one name"):
        compare_methods([methods[0], methods[0]], structure="LV")
    with pytest.raises(EchoPlanError, match="needs two methods"):
        compare_methods(methods[:1], structure="LV")
    with pytest.raises(EchoPlanError, match="needs two methods"):
        compare_methods([], structure="LV")


def test_evaluate_folder_shows_subgroups_where_a_dataset_is_known(study, predictions, capsys):
    words = [str(predictions["NearTrainer"]), str(study.references), "-np", "0"]
    assert evaluate_folder_command([*words, "-d", "Study"]) == 0
    assert "LV, image quality Poor: 16 frames, Dice" in capsys.readouterr().out
    stored = json.loads((predictions["NearTrainer"] / "summary.json").read_text(encoding="utf-8"))
    means = {(row["by"], row["group"]): row["mean"]["LV"]["end_systole"] for row in stored["subgroups"]}
    late = study.dice("NearTrainer", (2,))
    expected = np.mean([each for patient, own in late.items() if int(patient[1]) % 2 for each in own])
    assert means["image quality", "Poor"]["dice"]["mean"] == pytest.approx(expected)
    assert evaluate_folder_command(words) == 0
    assert "subgroups" not in json.loads((predictions["NearTrainer"] / "summary.json").read_text(encoding="utf-8"))


def test_what_training_really_leaves_can_be_compared(trained, tmp_path, monkeypatch, capsys):
    results = tmp_path / trained.results.name
    ours, other = (results / f"{name}__EchoPlans__frame" for name in ("UNetTrainer", "OtherTrainer"))
    for model in (ours, other):
        shutil.copytree(trained.results / ours.name, model, ignore=shutil.ignore_patterns("*.pth", "*.npz", "*.nii.gz"))
    monkeypatch.setenv("echoplan_raw", str(trained.raw.parent))
    monkeypatch.setenv("echoplan_results", str(tmp_path))
    assert compare_command(["Phantom"]) == 0
    page = capsys.readouterr().out
    assert "12 clips of 6 patients" in page
    rows = table(page, "Segmentation of LV")[1:]
    assert [row[:3] for row in rows[2:]] == [
        [phase, name, "12"] for phase in ("ED", "ES") for name in ("OtherTrainer", "UNetTrainer")
    ]
    assert table(page, "Ejection fraction, predicted")[1][1:] == table(page, "Ejection fraction, predicted")[2][1:]
    assert {row[0] for row in table(page, "Segmentation in subgroups")[1:]} >= {"view", "EF class"}
