"""From a dataset's fingerprint to a plan: every decision with its rule and its evidence."""

from .fingerprint import extract_fingerprint
from .integrity import Findings, verify_dataset
from .memory import MemoryModel, measure_memory
from .planner import plan_experiment
from .splits import make_splits

__all__ = [
    "Findings",
    "MemoryModel",
    "extract_fingerprint",
    "make_splits",
    "measure_memory",
    "plan_experiment",
    "verify_dataset",
]
