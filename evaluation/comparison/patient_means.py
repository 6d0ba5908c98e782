"""Figures of a patient from those of his or her frames: all labelled ones, those at end-diastole, at end-systole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

PHASES = ("all", "end_diastole", "end_systole")
OVERLAPS = ("dice", "iou")
DISTANCES = ("hd", "hd95", "assd")


def frame_values(case: Mapping[str, Any], structure: str) -> Iterator[tuple[str, dict[str, float]]]:
    """(phase, measures) of every judged frame; a frame at end-diastole or end-systole comes under that phase too.

    Args:
        case: one of `evaluate_folder`'s `per_case`.
        structure: whose masks.

    Returns:
        measures by name and unit: "dice", "iou", "hd_mm" (or "hd_px"), "hd95_mm", "assd_mm". Summaries from before
        there was a measure do not have it.
    """
    unit = case["distance_unit"]
    for frame in case["frames"]:
        found = frame[structure]
        values = {name: float(found[name]) for name in OVERLAPS}
        values |= {f"{name}_{unit}": float(found[name]) for name in DISTANCES if name in found}
        yield "all", values
        if frame["frame"] == case["ed_frame"]:
            yield "end_diastole", values
        if frame["frame"] == case["es_frame"]:
            yield "end_systole", values


def patient_means(
    per_case: Mapping[str, Mapping[str, Any]], patient_of: Mapping[str, str], structure: str
) -> dict[str, dict[tuple[str, str], float]]:
    """patient -> (phase, measure) -> mean over the patient's frames.

    Args:
        per_case: of `evaluate_folder`.
        patient_of: case -> patient; a case without one counts as its own.
        structure: whose masks.
    """
    values: dict[str, dict[tuple[str, str], list[float]]] = {}
    for name, case in per_case.items():
        own = values.setdefault(patient_of.get(name, name), {})
        for phase, measures in frame_values(case, structure):
            for measure, value in measures.items():
                own.setdefault((phase, measure), []).append(value)
    return {patient: {key: fmean(each) for key, each in own.items()} for patient, own in values.items()}


def ef_errors(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """patient -> absolute error of EF in points, where EF and its reference are known.

    Args:
        rows: of `read_ef_rows`.
    """
    return {
        patient: abs(row["ef_percent"] - row["reference_ef_percent"])
        for patient, row in rows.items()
        if row["ef_percent"] is not None and row["reference_ef_percent"] is not None
    }
