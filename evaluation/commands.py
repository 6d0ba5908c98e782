"""echoplan_evaluate_folder, echoplan_report and echoplan_compare."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from echoplan import layout
from echoplan.case_warnings import few
from echoplan.cli import folders, report_failures
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
from .ventricle.volumes import VolumeRule


def evaluate_folder(chosen: argparse.Namespace) -> int:
    """Compare predicted with reference masks."""
    dataset = _dataset(chosen.dataset)
    labels = chosen.labels or (dataset.description.structures if dataset else {"LV": 1})
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


def report(chosen: argparse.Namespace) -> int:
    """Make ef_report and report.html anew, as after masks were corrected by hand."""
    dataset = _dataset(chosen.dataset)
    masks, inputs = find_masks(chosen.masks), find_inputs(chosen.input, leave_out=chosen.masks)
    clips = {item.name: item.path for item in inputs}
    known = {item.name: item.case for item in inputs} | {case.case: case for case in (dataset.cases if dataset else ())}
    if not masks:
        raise EchoPlanError("there is no mask here", file=chosen.masks, remedy="name the folder echoplan_predict wrote")
    value = dataset.description.structures[dataset.description.target] if dataset else _target_value(chosen.masks)
    work = {
        name: (known.get(name, Case(name, name)), clips.get(name), masks[name], value, chosen.ef_method,
               chosen.find_phases, picture_of(number))
        for number, name in enumerate(sorted(masks))
    }  # fmt: skip
    results = run_cases(_report_clip, work, processes=chosen.np, description="measuring")
    measurements = [clip.measurement for clip in results.done.values()]
    rows = measure_patients(measurements, method=chosen.ef_method)
    chosen.output.mkdir(parents=True, exist_ok=True)
    source = {"Masks": str(chosen.masks), "Clips": str(chosen.input)}
    rows = [_with_quality(row, list(results.done.values())) for row in rows]
    content = write_ef_report(chosen.output, rows, method=chosen.ef_method, details=source)
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


def compare(chosen: argparse.Namespace) -> int:
    """Compare methods on the same cases."""
    dataset, notes = _dataset(chosen.dataset), list[str]()
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
