"""Masks in, figures and reports out: segmentation metrics, ventricular volumes, ejection fraction, agreement.

Knows no trainer: it takes arrays and files.
"""

from .agreement import agreement
from .cardiac_cycle import Phases, find_phases
from .ejection import (
    COLUMNS,
    VOLUME_RULES,
    CaseMask,
    CaseMeasurement,
    ef_agreement,
    measure_case,
    measure_patients,
    write_ef_report,
)
from .figures import Overlay, make_overlays
from .folder import evaluate_folder
from .geometry import Landmarks, find_landmarks, find_landmarks_of_beat, largest_component, lv_contour
from .report import write_report
from .segmentation import segmentation_metrics
from .volumes import (
    camus_biplane_volumes,
    ejection_fraction,
    lv_volume_biplane,
    lv_volume_single_plane,
)

__all__ = [
    "COLUMNS",
    "VOLUME_RULES",
    "CaseMask",
    "CaseMeasurement",
    "Landmarks",
    "Overlay",
    "Phases",
    "agreement",
    "camus_biplane_volumes",
    "ef_agreement",
    "ejection_fraction",
    "evaluate_folder",
    "find_landmarks",
    "find_landmarks_of_beat",
    "find_phases",
    "largest_component",
    "lv_contour",
    "lv_volume_biplane",
    "lv_volume_single_plane",
    "make_overlays",
    "measure_case",
    "measure_patients",
    "segmentation_metrics",
    "write_ef_report",
    "write_report",
]
