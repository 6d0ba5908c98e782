"""Masks in, figures and reports out: segmentation metrics, ventricular volumes, ejection fraction, agreement.

Knows no trainer: it takes arrays and files.
"""

from .agreement import agreement
from .comparison.compare import Comparison, compare_methods
from .comparison.method_results import MethodResults, read_crossvalidation, read_predictions
from .comparison.paired import holm, paired_test
from .comparison.subgroups import ef_class, subgroup_agreement, subgroup_metrics
from .comparison.tables import write_comparison
from .ef_report import ef_agreement, write_ef_report
from .ejection import COLUMNS, PatientRow, measure_patients
from .evaluate_cases import Evaluation, evaluate_cases
from .measurements import CaseMeasurement, measure_case
from .metrics import segmentation_metrics
from .report.page import write_report
from .report.thumbnails import Film, make_film
from .report_notes import report_notes
from .ventricle.cardiac_cycle import PhaseErrors, Phases, Rhythm, find_phases, phase_errors
from .ventricle.contour import lv_contour
from .ventricle.landmarks import Landmarks, find_landmarks, find_landmarks_of_beat
from .ventricle.volumes import (
    VOLUME_RULES,
    camus_biplane_volumes,
    ejection_fraction,
    lv_volume_biplane,
    lv_volume_single_plane,
)

__all__ = [
    "COLUMNS",
    "VOLUME_RULES",
    "CaseMeasurement",
    "Comparison",
    "Evaluation",
    "Film",
    "Landmarks",
    "MethodResults",
    "PatientRow",
    "PhaseErrors",
    "Phases",
    "Rhythm",
    "agreement",
    "camus_biplane_volumes",
    "compare_methods",
    "ef_agreement",
    "ef_class",
    "ejection_fraction",
    "evaluate_cases",
    "find_landmarks",
    "find_landmarks_of_beat",
    "find_phases",
    "holm",
    "lv_contour",
    "lv_volume_biplane",
    "lv_volume_single_plane",
    "make_film",
    "measure_case",
    "measure_patients",
    "paired_test",
    "phase_errors",
    "read_crossvalidation",
    "read_predictions",
    "report_notes",
    "segmentation_metrics",
    "subgroup_agreement",
    "subgroup_metrics",
    "write_comparison",
    "write_ef_report",
    "write_report",
]
