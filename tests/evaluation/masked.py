"""Cases and their masks, made in one line for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from echoplan.dataset import Case
from echoplan.evaluation import CaseMeasurement, PatientRow, measure_case, measure_patients


@dataclass(frozen=True)
class Masked:
    """A case and its mask (T, H, W)."""

    name: str
    mask: np.ndarray
    patient: str = ""
    view: str = ""
    spacing_mm: tuple[float, float] | None = None
    frame_time_ms: float | None = None
    ed_frame: int | None = None
    es_frame: int | None = None
    ef_percent: float | None = None
    edv_ml: float | None = None
    esv_ml: float | None = None

    @property
    def case(self) -> Case:
        row, column = self.spacing_mm or (None, None)
        known = {name: value for name, value in vars(self).items() if name not in ("name", "mask", "spacing_mm")}
        return Case(case=self.name, image="", spacing_row_mm=row, spacing_col_mm=column, **known)


def measured(masked: Masked, method: str = "simpson") -> CaseMeasurement:
    return measure_case(masked.case, masked.mask, method=method)


def patient_rows(cases: Sequence[Masked], method: str = "simpson") -> list[PatientRow]:
    return measure_patients([measured(case, method) for case in cases], method=method)
