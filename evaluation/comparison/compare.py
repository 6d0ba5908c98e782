"""Two or more methods on the same cases: figures as the papers report them, subgroups, and paired tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from echoplan import __version__
from echoplan.dataset import Case
from echoplan.errors import EchoPlanError

from ..agreement import agreement
from ..metrics import METRICS, summarise
from .method_results import MethodResults, check_same_frames
from .paired import holm, paired_test
from .subgroups import case_groups, patient_quality, subgroup_agreement

ALL_PATIENTS = "all patients"
FRAMES = "frames"
EF_ERROR = "ef_absolute_error"
MEASURES = ("dice", "iou", "hd95_mm", "assd_mm", "hd95_px", "assd_px")
_EF_STATISTICS = ("n", "failures", "pearson_r", "bias", "sd_of_differences", "mae")


@dataclass(frozen=True)
class Comparison:
    """What a comparison found; rows hold plain values and name their group in `by` and `group`.

    Attributes:
        structure: whose masks were compared.
        methods: their names, in the order to show; `sources` their folders.
        baseline: the method that the others are tested against.
        cases, patients: how many.
        segmentation: a row a group of frames and method: `frames`, `empty_predictions`, and mean and SD over frames of
            each measure (`dice_mean`, `dice_sd`, ...). Grouped by frames (all, end_diastole, end_systole), then, over
            all labelled frames, by subgroup.
        ejection: a row a group of patients and method: n, failures, and agreement of EF with the reference.
        tests: a row a measure and method: `paired_test` against the baseline on per-patient means, and
            `p_signed_rank_holm` over the methods tested on one measure.
        per_patient: patient -> method -> mean over frames of each measure, EF, reference EF and absolute error.
        notes: what a reader must know.
    """

    structure: str
    methods: tuple[str, ...]
    sources: dict[str, str]
    baseline: str
    cases: int
    patients: int
    segmentation: list[dict[str, Any]]
    ejection: list[dict[str, Any]]
    tests: list[dict[str, Any]]
    per_patient: dict[str, dict[str, dict[str, float | None]]]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As comparison.json holds it."""
        return {**vars(self), "versions": {"echoplan": __version__}}


def compare_methods(
    methods: Sequence[MethodResults],
    *,
    structure: str,
    cases: Iterable[Case] = (),
    baseline: str | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> Comparison:
    """Compare methods that were judged on the same frames.

    Segmentation is summarised over frames, as papers do, and tested on patients, because the frames of a patient are
    not independent. Patients come from `cases`, else from the EF tables, else each case is a patient of its own.

    Args:
        methods: two or more, of different names.
        structure: the label whose masks are compared.
        cases: what is known of the cases: patient, view, quality, reference EF.
        baseline: a method's name; None: the first.
        bootstrap, seed: of the intervals.
        notes: said beside those found here.

    Raises:
        EchoPlanError: fewer than two methods, one name twice, no such baseline, or the frames judged differ.
    """
    names = tuple(method.name for method in methods)
    baseline = names[0] if baseline is None and names else baseline
    _check_names(names, baseline)
    check_same_frames(methods, structure)
    about = {case.case: case for case in cases}
    patients, unknown = _patients(methods, about)
    ef, ef_notes = _comparable_ef({method.name: _ef_rows(method, about) for method in methods})
    per_patient = {name: {} for name in dict.fromkeys(patients.values())}
    for method in methods:
        for patient, values in _patient_means(method, patients, structure).items():
            per_patient[patient][method.name] = values | _ef_values(ef.get(method.name, {}).get(patient))
    segmentation = _segmentation(methods, structure, about)
    return Comparison(
        structure=structure,
        methods=names,
        sources={method.name: str(method.source) for method in methods},
        baseline=baseline,
        cases=len(patients),
        patients=len(per_patient),
        segmentation=segmentation,
        ejection=_ejection(ef, bootstrap, seed),
        tests=_tests(per_patient, names, baseline, bootstrap, seed),
        per_patient=per_patient,
        notes=[*notes, *unknown, *ef_notes, *_empty_notes(segmentation), *_unjudged_notes(methods)],
    )


def _check_names(names: Sequence[str], baseline: str | None) -> None:
    if len(names) < 2:
        raise EchoPlanError(f"a comparison needs two methods, not {len(names)}")
    if len(set(names)) < len(names):
        raise EchoPlanError(f"two methods have one name ({', '.join(names)})", remedy="name each differently")
    if baseline not in names:
        raise EchoPlanError(f"there is no method {baseline!r} to be the baseline", remedy=f"use {', '.join(names)}")


def _patients(methods: Sequence[MethodResults], about: Mapping[str, Case]) -> tuple[dict[str, str], list[str]]:
    """case -> patient, and a note where some are not known."""
    of_ef = {
        case: patient
        for method in methods
        for patient, row in method.ef_rows.items()
        for case in (row.get("cases") or "").split(";")
    }
    patients, alone = {}, 0
    for case in methods[0].per_case:
        known = about[case].patient if case in about else of_ef.get(case)
        alone += known is None
        patients[case] = known or case
    note = f"The patient of {alone} cases is not known: each counts as one. Name the dataset with -d."
    return patients, [note] if alone else []


def _patient_means(
    method: MethodResults, patients: Mapping[str, str], structure: str
) -> dict[str, dict[str, float | None]]:
    """patient -> mean over the patient's labelled frames of every measure there is."""
    values: dict[str, dict[str, list[float]]] = {}
    for case, found in method.per_case.items():
        own = values.setdefault(patients[case], {})
        for frame in found["frames"]:
            for metric in METRICS:
                key = f"{metric}_{found['distance_unit']}" if metric in ("hd95", "assd") else metric
                own.setdefault(key, []).append(frame[structure][metric])
    return {patient: {key: fmean(each) for key, each in own.items()} for patient, own in values.items()}


def _segmentation(methods: Sequence[MethodResults], structure: str, about: Mapping[str, Case]) -> list[dict[str, Any]]:
    rows = []
    whole = {method.name: summarise(method.per_case.values(), structure) for method in methods}
    for group in ("all", "end_diastole", "end_systole"):
        rows += [
            {"by": FRAMES, "group": group, "method": name, **_flat(found[group])}
            for name, found in whole.items()
            if group in found
        ]
    for by, group, members in case_groups(about.values(), methods[0].per_case):
        for method in methods:
            found = summarise([method.per_case[case] for case in members], structure)["all"]
            rows.append({"by": by, "group": group, "method": method.name, **_flat(found)})
    return rows


def _flat(found: Mapping[str, Any]) -> dict[str, Any]:
    """{"dice": {"mean": m, "sd": s}} as {"dice_mean": m, "dice_sd": s}; counts stay as they are."""
    flat: dict[str, Any] = {}
    for key, value in found.items():
        flat |= {f"{key}_{name}": each for name, each in value.items()} if isinstance(value, Mapping) else {key: value}
    return flat


def _ef_rows(method: MethodResults, about: Mapping[str, Case]) -> dict[str, dict[str, Any]]:
    """The EF table's rows, with the reference EF and image quality of the dataset where it knows them."""
    reference = {case.patient: case.ef_percent for case in about.values() if case.ef_percent is not None}
    qualities: dict[str, list[str]] = {}
    for case in about.values():
        qualities.setdefault(case.patient, []).append(case.quality)
    return {
        patient: {
            **row,
            "reference_ef_percent": reference.get(patient, row["reference_ef_percent"]),
            "image_quality": patient_quality(qualities.get(patient, ())),
        }
        for patient, row in method.ef_rows.items()
    }


def _comparable_ef(
    tables: Mapping[str, dict[str, dict[str, Any]]],
) -> tuple[dict[str, dict[str, dict[str, Any]]], list[str]]:
    """The EF tables if they can be compared, else none and a note on the reason."""
    if not any(tables.values()):
        return {}, ["No EF is compared: no method has an EF table (ef.csv, ef_report.csv)."]
    lacking = [name for name, rows in tables.items() if not rows]
    if lacking:
        return {}, [f"No EF is compared: {', '.join(lacking)} has no EF table (ef.csv, ef_report.csv)."]
    rules = {name: sorted({row.get("volume_rule") or "?" for row in rows.values()}) for name, rows in tables.items()}
    if len({rule for own in rules.values() for rule in own}) > 1:
        each = ", ".join(f"{name}: {' and '.join(own)}" for name, own in rules.items())
        return {}, [f"No EF is compared: the rules for volumes differ ({each})."]
    first, *others = tables
    if any(tables[first].keys() != tables[name].keys() for name in others):
        return {}, ["No EF is compared: the EF tables do not have the same patients."]
    with_reference = {
        name: {patient: row for patient, row in rows.items() if row["reference_ef_percent"] is not None}
        for name, rows in tables.items()
    }
    if not any(with_reference.values()):
        return {}, ["No EF is compared: no reference EF is known."]
    return with_reference, [f"EF by the rule {rules[first][0]}; {_phases_in_words(tables)}."]


def _phases_in_words(tables: Mapping[str, dict[str, dict[str, Any]]]) -> str:
    ways = {way for rows in tables.values() for row in rows.values() for way in (row.get("phases") or "").split(";")}
    ways &= {"given", "found"}
    return f"end-diastole and end-systole {' or '.join(sorted(ways))}" if ways else "phases not recorded"


def _ef_values(row: Mapping[str, Any] | None) -> dict[str, float | None]:
    if row is None:
        return {}
    ef, reference = row["ef_percent"], row["reference_ef_percent"]
    error = None if ef is None or reference is None else abs(ef - reference)
    return {"ef_percent": ef, "reference_ef_percent": reference, EF_ERROR: error}


def _ejection(tables: Mapping[str, dict[str, dict[str, Any]]], bootstrap: int, seed: int) -> list[dict[str, Any]]:
    rows = []
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name, table in tables.items():
        own = list(table.values())
        predicted, reference = ([row[key] for row in own] for key in ("ef_percent", "reference_ef_percent"))
        found = agreement(predicted, reference, bootstrap=bootstrap, seed=seed)
        rows.append({"by": ALL_PATIENTS, "group": "", "method": name, **found})
        for group in subgroup_agreement(own):
            head = {"by": group["by"], "group": group["group"], "method": name}
            groups.setdefault((group["by"], group["group"]), []).append(head | {k: group[k] for k in _EF_STATISTICS})
    return rows + [row for group in groups.values() for row in group]


def _tests(
    per_patient: Mapping[str, Mapping[str, Mapping[str, float | None]]],
    names: Sequence[str],
    baseline: str,
    bootstrap: int,
    seed: int,
) -> list[dict[str, Any]]:
    rows = []
    for measure in (*MEASURES, EF_ERROR):
        family = []
        for name in names:
            if name == baseline:
                continue
            pairs = [(own[name].get(measure), own[baseline].get(measure)) for own in per_patient.values()]
            known = [pair for pair in pairs if None not in pair]
            if known:
                values, against = zip(*known, strict=True)
                found = paired_test(values, against, bootstrap=bootstrap, seed=seed)
                family.append({"measure": measure, "method": name, "baseline": baseline, **found})
        corrected = holm([row["p_signed_rank"] for row in family])
        rows += [row | {"p_signed_rank_holm": p} for row, p in zip(family, corrected, strict=True)]
    return rows


def _empty_notes(segmentation: Sequence[Mapping[str, Any]]) -> list[str]:
    whole = [row for row in segmentation if (row["by"], row["group"]) == (FRAMES, "all")]
    empty = [f"{row['method']} {row['empty_predictions']}" for row in whole if row["empty_predictions"]]
    return [f"Frames predicted empty (Dice 0, distance the image's diagonal): {', '.join(empty)}."] if empty else []


def _unjudged_notes(methods: Sequence[MethodResults]) -> list[str]:
    cases = sorted({case for method in methods for case in method.unjudged})
    return [f"Cases without a usable prediction of any method, left out: {', '.join(cases)}."] if cases else []
