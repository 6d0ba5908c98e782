"""Networks on datasets that they never saw, beside their cross-validation: figures, and paired tests between methods.

The tables of Chao et al. 2025 (Foundation versus domain-specific models for left ventricular segmentation on cardiac
ultrasound, npj Digital Medicine): Dice, IoU, HD and ASD (here ASSD) over all labelled frames, at end-diastole and at
end-systole, as mean and SD, with paired Wilcoxon tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from .learning_curves import Line
from .paired import holm, paired_test
from .patient_means import PHASES, ef_errors, frame_values

MEASURES = ("dice", "iou", "hd_mm", "hd95_mm", "assd_mm", "hd_px", "hd95_px", "assd_px")


@dataclass(frozen=True)
class JudgedNetwork:
    """One network's figures on one dataset.

    Attributes:
        line: method, clip length, augmentation.
        size: the training size asked for.
        trained_on, tested_on: datasets.
        within: tested by cross-validation on the dataset it was trained on.
        per_case: case -> figures of its frames, as `evaluate_folder` gives them.
        patient_of: case -> patient.
        structure: whose masks were judged.
        ef_rows: patient -> row of the EF table.
    """

    line: Line
    size: str
    trained_on: str
    tested_on: str
    within: bool
    per_case: Mapping[str, Mapping[str, Any]]
    patient_of: Mapping[str, str]
    structure: str
    ef_rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class CrossDataset:
    """What the networks of several methods do on one dataset or more; rows hold plain values.

    Attributes:
        rows: a row a dataset tested on, phase and method: networks, frames, patients, and mean and SD over frames of
            each measure, the networks' figures of a frame averaged first; at phase "all" the mean EF error.
        tests: a row a dataset, phase, measure and method: `paired_test` against the first method on the means of the
            patients that both have, with the correction of Holm over the methods.
    """

    rows: list[dict[str, Any]]
    tests: list[dict[str, Any]]


def cross_dataset(networks: Sequence[JudgedNetwork], *, bootstrap: int = 2000, seed: int = 0) -> CrossDataset:
    """Summarise tested networks.

    Args:
        networks: a method's networks of several folds and seeds are averaged frame by frame.
        bootstrap, seed: of the intervals.
    """
    methods = tuple(dict.fromkeys((network.line, network.size) for network in networks))
    lines = [line for line, _ in methods]
    several = len({size for _, size in methods}) > 1
    names = {(line, size): line.in_words(lines) + (f", {size} patients" if several else "") for line, size in methods}
    places = dict.fromkeys((network.trained_on, network.tested_on, network.within) for network in networks)
    rows, tests = [], []
    for trained_on, tested_on, within in sorted(places, key=lambda place: not place[2]):
        groups = {
            name: [
                network for network in networks
                if (network.line, network.size, network.tested_on, network.within) == (*key, tested_on, within)
            ]
            for key, name in names.items()
        }  # fmt: skip
        groups = {name: own for name, own in groups.items() if own}
        place = {"trained_on": trained_on, "tested_on": tested_on}
        frames = {name: _averaged(own) for name, own in groups.items()}
        for phase in PHASES:
            for name, own in groups.items():
                values = [item for each in frames[name].values() for item in each.get(phase, ())]
                if values:
                    rows.append({**place, "phase": phase, "method": name, **_row(own, values, phase)})
            tests += [{**place, **row} for row in _tests(frames, phase, bootstrap, seed)]
    return CrossDataset(rows, tests)


def _averaged(networks: Sequence[JudgedNetwork]) -> dict[str, dict[str, list[dict[str, float]]]]:
    """patient -> phase -> its frames' measures, each the mean over the networks that judged the frame."""
    collected: dict[tuple[str, str, str, int], dict[str, list[float]]] = {}
    for network in networks:
        for case, found in network.per_case.items():
            counts = dict.fromkeys(PHASES, 0)
            for phase, measures in frame_values(found, network.structure):
                key = (network.patient_of.get(case, case), phase, case, counts[phase])
                counts[phase] += 1
                for name, value in measures.items():
                    collected.setdefault(key, {}).setdefault(name, []).append(value)
    patients: dict[str, dict[str, list[dict[str, float]]]] = {}
    for (patient, phase, _, _), measures in collected.items():
        means = {name: fmean(values) for name, values in measures.items()}
        patients.setdefault(patient, {}).setdefault(phase, []).append(means)
    return patients


def _row(networks: Sequence[JudgedNetwork], values: Sequence[Mapping[str, float]], phase: str) -> dict[str, Any]:
    patients = {network.patient_of.get(case, case) for network in networks for case in network.per_case}
    row: dict[str, Any] = {"networks": len(networks), "frames": len(values), "patients": len(patients)}
    for name in MEASURES:
        own = [item[name] for item in values if name in item]
        if own:
            row |= {f"{name}_mean": fmean(own), f"{name}_sd": stdev(own) if len(own) > 1 else None}
    if phase == "all":
        errors: dict[str, list[float]] = {}
        for network in networks:
            for patient, error in ef_errors(network.ef_rows).items():
                errors.setdefault(patient, []).append(error)
        row["ef_absolute_error"] = fmean(map(fmean, errors.values())) if errors else None
    return row


def _tests(
    frames: Mapping[str, Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]],
    phase: str,
    bootstrap: int,
    seed: int,
) -> list[dict[str, Any]]:
    means = {
        name: {
            (patient, measure): fmean(item[measure] for item in own[phase] if measure in item)
            for patient, own in patients.items()
            for measure in (own[phase][0] if phase in own else ())
        }
        for name, patients in frames.items()
    }
    first, *others = means
    rows = []
    for measure in MEASURES:
        family = []
        for name in others:
            common = sorted(key for key in set(means[first]) & set(means[name]) if key[1] == measure)
            if common:
                pairs = [[means[one][key] for key in common] for one in (name, first)]
                found = paired_test(*pairs, bootstrap=bootstrap, seed=seed)
                family.append({"phase": phase, "measure": measure, "method": name, "baseline": first, **found})
        corrected = holm([row["p_signed_rank"] for row in family])
        rows += [row | {"p_signed_rank_holm": p} for row, p in zip(family, corrected, strict=True)]
    return rows
