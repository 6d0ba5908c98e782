"""Studies of data: one method or several, trained on growing parts of a dataset, with other clips and augmentations."""

from .grid import OWN_AUGMENTATION, Cell, StudyRequest, drawn_patients, patients_asked
from .run import StudyOutcome, run_study
from .study import Study, plan_study

__all__ = [
    "OWN_AUGMENTATION",
    "Cell",
    "Study",
    "StudyOutcome",
    "StudyRequest",
    "drawn_patients",
    "patients_asked",
    "plan_study",
    "run_study",
]
