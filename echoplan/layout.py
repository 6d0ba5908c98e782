"""The name of every file and folder that EchoPlan reads or writes, each said once.

docs/formats.md shows the tree. Folders of a user's own (`$echoplan_raw`, -o OUT) are in `echoplan.paths`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

# A raw dataset
DATASET_FILE = "dataset.json"
CASES_FILE = "cases.csv"
WARNINGS_FILE = "warnings.json"
TRAINING_IMAGES, TRAINING_LABELS, TEST_IMAGES, TEST_LABELS = "imagesTr", "labelsTr", "imagesTs", "labelsTs"

# A preprocessed dataset
DEFAULT_PLANS = "EchoPlans"  # the plan's name where nobody gives another
INTEGRITY_FILE = "integrity.json"
FINGERPRINT_FILE = "dataset_fingerprint.json"
SPLITS_FILE = "splits_final.json"  # the folds; a paper's own split has a file beside it, see `split_file`
GROUND_TRUTH = "gt_segmentations"
STORE_FILE = "store.json"
FEATURES = "features"  # of frozen encoders

# A trained model, results/<Dataset>/<Trainer>__<Plans>__<configuration>
MODEL_PLAN_FILE = "plans.json"
POSTPROCESSING_FILE = "postprocessing.json"
CALIBRATION_FILE = "calibration.json"
CROSS_VALIDATION = "crossval_results"
BEST_CONFIGURATION_FILE = "best_configuration.json"
VALIDATION, TEST = "validation", "test"
METRICS_FILE = "metrics.jsonl"
PROGRESS_FILE = "progress.png"
STOP_FILE = "stop"  # put there by who wants the training to stop
DEBUG_FILE = "debug.json"

# What predicting, validating and judging leave
SUMMARY_FILE = "summary.json"
EF_FILE = "ef.csv"  # by the ordinary rule, "simpson"
EF_REPORT_CSV, EF_REPORT_JSON, REPORT_PAGE = "ef_report.csv", "ef_report.json", "report.html"
ARGUMENTS_FILE = "prediction_args.json"
EVIDENCE = "evidence"
OVERLAYS = "overlays"
DICOM = "dicom"
FAILURES_FILE = "failures.json"
ZERO_SHOT_FILE = "zero_shot.json"
REFERENCES = "references"
STUDY_FILE = "study.json"
STRESS_CSV, STRESS_TABLE, STRESS_FIGURE, STRESS_PATIENTS = "stress.csv", "stress.md", "stress.png", "patients"

# An exported model
MANIFEST_FILE = "manifest.json"
SHIPPED_CARD_FILE = "MODEL_CARD.md"
ONNX_FILE, MODEL_CARD_FILE = "model.onnx", "model_card.md"

_FOLD = re.compile(r"fold_(\d+)")


def plan_file(plans_name: str) -> str:
    """A plan in a preprocessed dataset's folder."""
    return f"{plans_name}.json"


def split_file(split: str) -> str:
    """A paper's split ("number" or "official"), or the folds ("folds"), in a preprocessed dataset's folder."""
    return SPLITS_FILE if split == "folds" else f"splits_{split}.json"


def fold_folder(fold: int) -> str:
    """A fold in a model's folder."""
    return f"fold_{fold}"


def lock_file(fold: int) -> str:
    """In a model's folder: held by the process that trains the fold; what is in it is nobody's."""
    return f".{fold_folder(fold)}.lock"


def lock_holder_file(fold: int) -> str:
    """Beside it, who holds it, in words for others."""
    return f".{fold_folder(fold)}.training.json"


def checkpoint_file(kind: str) -> str:
    """A checkpoint in a fold's folder: "latest", "best" or "final"."""
    return f"checkpoint_{kind}.pth"


def step_file(name: str) -> str:
    """A graph of an exported model that has several."""
    return f"{name}.onnx"


def exported_network_file(checkpoint: Path, key: str) -> Path:
    """The network of a checkpoint as ONNX, beside it; `key` tells checkpoints apart."""
    return checkpoint.with_suffix(f".{key}.onnx")


def exported_network_files(file: Path) -> Iterator[Path]:
    """All `exported_network_file` that were ever made of the checkpoint that one of them was made of."""
    yield from file.parent.glob(f"{file.name.split('.')[0]}.*.onnx")


def mask_file(case: str) -> str:
    """A case's mask, wherever masks lie."""
    return f"{case}.nii.gz"


def exact_mask_file(case: str) -> str:
    """A predicted mask whose place in space NIfTI cannot hold."""
    return f"{case}.mha"


def probabilities_file(case: str) -> str:
    """A case's probabilities, or its evidence."""
    return f"{case}.npz"


def part_arguments_file(number: int, count: int) -> str:
    """The record that one share of a prediction leaves."""
    return f"prediction_args.part_{number}_of_{count}.json"


def together(models: Sequence[str]) -> str:
    """What several models' folders are called as an ensemble; of one, its own name."""
    return "___".join(models)


def home_of(models: Sequence[str]) -> str:
    """Where in a dataset's results that lies which concerns a model, or an ensemble of several."""
    return models[0] if len(models) == 1 else f"ensembles/{together(models)}"


def folds_with(model: Path, name: str) -> Iterator[tuple[int, Path]]:
    """(fold, file) of a model's folds that have a file or folder of that name, by number."""
    matches = ((_FOLD.fullmatch(path.name), path / name) for path in model.glob("fold_*"))
    yield from sorted((int(match[1]), file) for match, file in matches if match and file.exists())


def finished_folds(model: Path) -> list[int]:
    """The folds of a model whose training is finished, by number."""
    return [fold for fold, _ in folds_with(model, checkpoint_file("final"))]


def model_folders(results: Path) -> list[Path]:
    """The models of a dataset's results, <Trainer>__<Plans>__<configuration>, by name."""
    return sorted(path.parent for path in results.glob(f"*__*__*/{MODEL_PLAN_FILE}"))


def ef_file(rule: str) -> str:
    """The EF table of a validation by one of the volume rules: ef.csv by the ordinary one, ef_camus.csv, ..."""
    return EF_FILE if rule == "simpson" else f"ef_{rule}.csv"
