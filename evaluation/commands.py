"""echoplan_evaluate_folder, echoplan_report and echoplan_compare."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from echoplan import layout
from echoplan.case_warnings import few
from echoplan.cli import add_ef_options, add_processes, command, existing_path, folders, parser, report_failures
from echoplan.dataset import Case, DatasetDescription
from echoplan.errors import EchoPlanError
from echoplan.files import read_json, write_json
from echoplan.inputs import find_inputs
from echoplan.multi_dataset import MultiDataset
from echoplan.parallel_map import run_cases

from .comparison.compare import compare_methods
from .comparison.method_results import judged_by, read_crossvalidation, read_predictions
from .comparison.subgroups import subgroup_metrics
from .comparison.tables import to_markdown, write_comparison
from .ef_report import write_ef_report
from .ejection import PatientRow, measure_patients
from .evaluate_cases import cases_in, evaluate_cases, find_masks
from .quality import default_limits, find_doubts, patient_measures, with_quality
from .report.clips import ReportedClip, report_clip
from .report.overlays import write_overlays
from .report.page import write_report
from .report.thumbnails import Picture, picture_of
from .ventricle.volumes import VOLUME_RULES, VolumeRule


@command()
def evaluate_folder_command(arguments: Sequence[str]) -> int:
    """Compare predicted with reference masks."""
    options = parser("echoplan_evaluate_folder", "Dice, IoU, HD95 and ASSD of predicted masks, frame by frame.")
    options.add_argument("folders", nargs="*", type=existing_path, metavar="PREDICTIONS REFERENCES",
                         help="folder of predicted masks, then that of reference masks")  # fmt: skip
    options.add_argument("-pred", dest="predictions", type=existing_path, metavar="FOLDER", help="the one, by name")
    options.add_argument("-ref", dest="references", type=existing_path, metavar="FOLDER", help="the other, by name")
    options.add_argument("-d", "--dataset", metavar="DATASET", help="takes labels, ED and ES from this raw dataset")
    options.add_argument("--labels", nargs="+", type=_label, metavar="NAME=VALUE", help="instead of a dataset's labels")
    options.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: PREDICTIONS/summary.json")
    options.add_argument("--ef_method", choices=sorted(VOLUME_RULES), help="also measure EF in both masks by this "
                         "rule, at the ED and ES of -d, and write PREDICTIONS/ef.csv, ef_camus.csv, ...")  # fmt: skip
    add_processes(options)
    chosen = options.parse_args(arguments)
    _take_folders(options, chosen)
    dataset = _dataset(chosen.dataset)
    labels = dict(chosen.labels or (dataset.description.structures if dataset else {"LV": 1}).items())
    output = chosen.output or chosen.predictions / layout.SUMMARY_FILE
    cases = cases_in(chosen.references, dataset.cases if dataset else (), headers=chosen.ef_method is not None)
    target = dataset.description.target if dataset else next(iter(labels))
    found = evaluate_cases(
        cases,
        chosen.predictions,
        chosen.references,
        labels=labels,
        target=target if chosen.ef_method else None,
        processes=chosen.np,
    )
    summary = found.summary() | judged_by(chosen.references)
    if dataset:
        summary["subgroups"] = subgroup_metrics(summary["per_case"], dataset.cases, summary["labels"])
    write_json(output, summary)
    for name, groups in summary["mean"].items():
        for group, values in groups.items():
            print(f"{name}, {group.replace('_', '-')}: {_in_words(values)}")
    for row in summary.get("subgroups", ()):
        for name, groups in row["mean"].items():
            print(f"{name}, {row['by']} {row['group']}: {_in_words(groups['all'])}")
    if chosen.ef_method:
        found.write_rows(chosen.predictions)
        print("\n".join(found.ef_lines(chosen.ef_method)))
    print(f"written: {output}")
    missing = dict.fromkeys(summary["missing"], "there is no prediction")
    return report_failures(missing | summary["failures"], work="evaluation")


def _take_folders(options: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    """Give the two folders their names, however they were given."""
    named = [chosen.predictions, chosen.references]
    if [len(chosen.folders), *map(bool, named)] not in ([2, False, False], [0, True, True]):
        options.error("give two folders: PREDICTIONS REFERENCES, in this order, or -pred FOLDER -ref FOLDER")
    chosen.predictions, chosen.references = chosen.folders or named


@command()
def report_command(arguments: Sequence[str]) -> int:
    """Make ef_report and report.html anew, as after masks were corrected by hand."""
    options = parser("echoplan_report", "Measures volumes and ejection fractions in masks, and writes the reports.")
    options.add_argument("-i", "--clips", required=True, type=existing_path, metavar="CLIPS", help="their folder")
    options.add_argument("-m", "--masks", required=True, type=existing_path, metavar="MASKS", help="their folder")
    options.add_argument("-o", "--output", required=True, type=Path, metavar="OUT", help="folder for the reports")
    options.add_argument("-d", "--dataset", metavar="DATASET", help="a raw dataset that names patients and views; not "
                         "given: a cases.csv with the clips, or their names, as for echoplan_predict")  # fmt: skip
    options.add_argument("--method", choices=sorted(VOLUME_RULES), default="simpson", help="the rule for disc heights")
    options.add_argument("--find_phases", action="store_true", help="find ED and ES even where cases.csv gives them")
    options.add_argument("--title", default="Ejection fraction report", help="the report's heading")
    options.add_argument("--overlays", action="store_true", help="also write OUT/overlays/<case>.mp4")
    add_processes(options)
    chosen = options.parse_args(arguments)
    dataset = _dataset(chosen.dataset)
    masks, inputs = find_masks(chosen.masks), find_inputs(chosen.clips, leave_out=chosen.masks)
    clips = {item.name: item.path for item in inputs}
    known = {item.name: item.case for item in inputs} | {case.case: case for case in (dataset.cases if dataset else ())}
    if not masks:
        raise EchoPlanError("there is no mask here", file=chosen.masks, remedy="name the folder echoplan_predict wrote")
    value = dataset.description.structures[dataset.description.target] if dataset else _target_value(chosen.masks)
    work = {
        name: (known.get(name, Case(name, name)), clips.get(name), masks[name], value, chosen.method,
               chosen.find_phases, picture_of(number))
        for number, name in enumerate(sorted(masks))
    }  # fmt: skip
    results = run_cases(_report_clip, work, processes=chosen.np, description="measuring")
    measurements = [clip.measurement for clip in results.done.values()]
    rows = measure_patients(measurements, method=chosen.method)
    chosen.output.mkdir(parents=True, exist_ok=True)
    source = {"Masks": str(chosen.masks), "Clips": str(chosen.clips)}
    rows = [_with_quality(row, list(results.done.values())) for row in rows]
    content = write_ef_report(chosen.output, rows, method=chosen.method, details=source)
    write_report(
        chosen.output / layout.REPORT_PAGE,
        rows=rows,
        measurements=measurements,
        films=[clip.film for clip in results.done.values() if clip.film is not None],
        title=chosen.title,
        details=source,
    )
    if chosen.overlays:
        measured = {item.name: (clips[item.name], masks[item.name], item) for item in measurements}
        videos = write_overlays(chosen.output / layout.OVERLAYS, measured, value, processes=chosen.np)
        results.failures |= {f"overlay of {case}": reason for case, reason in videos.failures.items()}
    if results.failures:
        write_json(chosen.output / layout.FAILURES_FILE, results.failures)
    if unmasked := sorted(clips.keys() - masks.keys()):
        print(f"{len(unmasked)} clips have no mask and are left out: {few(unmasked)}")
    print(f"{len(rows)} patients: {chosen.output / layout.EF_REPORT_CSV} and {chosen.output / layout.REPORT_PAGE}")
    for note in content["notes"]:
        print(note)
    without_ef = [row for row in rows if row.failure]
    if without_ef:
        print(f"{len(without_ef)} of them have no EF; the column failure says why")
    seen = {item.patient for item in measurements if item.has_volumes}  # volumes that give no EF are a finding
    unmeasured = {row.name: row.failure for row in without_ef if row.patient not in seen}
    return report_failures(results.failures | unmeasured, work="report")


@command()
def compare_command(arguments: Sequence[str]) -> int:
    """Compare methods on the same cases."""
    options = _compare_parser()
    chosen = options.parse_args(arguments)
    _check_compare_options(options, chosen)
    dataset, notes = _dataset(chosen.known if chosen.predictions else chosen.dataset), list[str]()
    structure = chosen.structure or (dataset.description.target if dataset else "LV")
    if chosen.predictions:
        methods = read_predictions(
            dict(chosen.predictions),
            chosen.references,
            labels=dataset.description.structures if dataset else {"LV": 1},
            cases=dataset.cases if dataset else (),
            target=structure,
            rule=chosen.ef_method,
            reference=chosen.ef_reference,
            processes=chosen.np,
        )
    else:
        methods, notes = read_crossvalidation(
            folders().find_results(chosen.dataset),
            chosen.trainers,
            rule=chosen.ef_method,
            reference=chosen.ef_reference,
        )
    comparison = compare_methods(
        methods,
        structure=structure,
        cases=dataset.cases if dataset else (),
        baseline=chosen.baseline,
        notes=notes,
    )
    print(to_markdown(comparison), end="")
    if chosen.output is not None:
        write_comparison(chosen.output, comparison)
        print(f"\nwritten: comparison.md, .csv, .tex and .json in {chosen.output}")
    unjudged = {case: reason for method in methods for case, reason in method.unjudged.items()}
    return report_failures(unjudged, work="comparison")


def _compare_parser() -> argparse.ArgumentParser:
    made = parser(
        "echoplan_compare",
        "Compare methods on the same cases: the cross-validation of a dataset's trainers, or folders of predictions.",
    )
    made.add_argument("dataset", nargs="?", metavar="DATASET", help="compares the trainers of this dataset")
    made.add_argument("-tr", dest="trainers", nargs="+", metavar="TRAINER", help="these, in this order; else all")
    made.add_argument("--predictions", nargs="+", type=_named_folder, metavar="NAME=FOLDER", help="folders of masks")
    made.add_argument("--references", type=existing_path, metavar="FOLDER", help="reference masks of --predictions")
    made.add_argument("-d", dest="known", metavar="DATASET", help="a raw dataset that knows the cases of --predictions")
    made.add_argument("--baseline", metavar="NAME", help="the method to test the others against; else the first")
    made.add_argument("--structure", metavar="NAME", help="whose masks to compare; else the dataset's target, or LV")
    made.add_argument("-o", dest="output", type=Path, metavar="OUT", help="folder for comparison.md, .csv, .tex, .json")
    add_ef_options(made, VOLUME_RULES)
    add_processes(made)
    return made


def _check_compare_options(options: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    if bool(chosen.dataset) == bool(chosen.predictions):
        options.error("give a DATASET to compare its trainers, or --predictions, and not both")
    if chosen.dataset and (chosen.references or chosen.known):
        options.error("--references and -d go with --predictions")
    if chosen.predictions and chosen.references is None:
        options.error("--predictions needs --references")
    if chosen.predictions and chosen.trainers:
        options.error("-tr goes with a DATASET")
    names = [name for name, _ in chosen.predictions or ()]
    if chosen.predictions and (len(names) < 2 or len(set(names)) < len(names)):
        options.error("--predictions needs two or more folders, each with a NAME of its own")


def _report_clip(
    case: Case, clip_file: Path | None, mask_file: Path, value: int, method: VolumeRule, find: bool, picture: Picture
) -> ReportedClip:
    if clip_file is None:
        raise EchoPlanError("there is no clip of this name in the folder of the clips", file=mask_file)
    case = case.without_phases() if find else case
    return report_clip(case, clip_file, mask_file, value, method=method, picture=picture)


def _with_quality(row: PatientRow, clips: Sequence[ReportedClip]) -> PatientRow:
    """A patient's row with what of its quality masks alone can say, by the fixed limits."""
    limits = default_limits()
    doubts = {"": find_doubts(patient_measures(row), limits)}
    for clip in clips:
        if clip.measurement.patient == row.patient and row.exam in (None, clip.measurement.case.exam):
            doubts[clip.measurement.name] = find_doubts(clip.quality, limits)
    return with_quality(row, doubts, folds=False)


def _dataset(name: str | None) -> MultiDataset | None:
    return None if name is None else MultiDataset.read(folders(), name)


def _target_value(masks: Path) -> int:
    """The measured structure's value, by the dataset.json beside the masks where there is one; else 1."""
    file = masks / layout.DATASET_FILE
    if not file.is_file():
        return 1
    description = DatasetDescription.from_dict(read_json(file), source=file)
    return description.structures[description.target]


def _label(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    if not name or not value.isdigit():
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE, as in LV=1")
    return name, int(value)


def _named_folder(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=FOLDER")
    return name, existing_path(folder)


def _in_words(values: Mapping[str, Any]) -> str:
    parts = [f"{values['frames']} frames"]
    if values["empty_predictions"]:
        parts.append(f"{values['empty_predictions']} predicted empty")
    if values["both_empty"]:
        others = values.get("dice_of_others")
        without = f" (Dice of the others {100 * others['mean']:.2f} %)" if others else ""
        parts.append(f"{values['both_empty']} empty in both{without}")
    for key, numbers in values.items():
        if isinstance(numbers, Mapping) and key != "dice_of_others":
            name, _, unit = key.partition("_")
            scale, words = (1, f" {unit}") if unit else (100, " %")
            sd = "" if numbers["sd"] is None else f" (SD {scale * numbers['sd']:.2f})"
            name = {"dice": "Dice", "iou": "IoU"}.get(name, name.upper())
            parts.append(f"{name} {scale * numbers['mean']:.2f}{words}{sd}")
    return ", ".join(parts)
