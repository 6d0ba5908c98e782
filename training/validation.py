"""Final validation of a fold: its own cases, predicted whole and judged on their native grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from echoplan import layout
from echoplan.files import write_csv, write_json
from echoplan.imageio import Clip, write_mask
from echoplan.networks.sliding_window import segment_clip
from echoplan.parallel_map import progress

from ..evaluation import COLUMNS, CaseMask, evaluate_folder, measure_patients
from ..evaluation.folder import summarise
from ..preprocessing.clip import normaliser
from ..preprocessing.probabilities import ClipProbabilities, save_probabilities
from ..preprocessing.store import StoredCase
from .fold import FoldSetup


def validate_fold(
    network: nn.Module,
    setup: FoldSetup,
    *,
    stride: int | None = None,
    folder: Path | None = None,
    prompt: Callable[[str], Any] | None = None,
) -> dict[str, Any]:
    """Predict the fold's validation cases with its own network.

    No label takes part in a prediction: only frames are read from the store; labels are opened afterwards, for judging.
    (With `prompt`, a comparison of prompts, a label may say where to begin.)

    Args:
        network: in evaluation mode, on its device.
        setup: the fold.
        stride: frames from one of a window's frames to the next; None is the plan's, in a joint each dataset's own.
        folder: for the results; None is the fold's validation/.
        prompt: case -> what a promptable network is told; None tells it nothing.

    Returns:
        the summary; left behind are validation/<case>.nii.gz (masks on the native grid), <case>.npz (probabilities on
        the network's grid), summary.json and ef.csv. In a joint, "datasets" in the summary has each dataset's `cases`,
        `frames` and `mean`.
    """
    folder = folder or setup.folder / layout.VALIDATION
    measured = []
    for case in progress(setup.val, description="validation"):
        told = None if prompt is None else prompt(case)
        stored = setup.store.case(case)
        step = setup.plan_of(stored).window_stride if stride is None else stride
        mask = predict_stored_case(network, setup, stored, stride=step, save_to=folder, prompts=told)
        measured.append(
            CaseMask(
                case=case,
                patient=stored.patient,
                view=stored.view,
                mask=mask == setup.description.labels[setup.description.target],
                spacing_mm=stored.spacing_mm,
                frame_time_ms=stored.frame_time_ms,
                ed_frame=stored.ed_frame,
                es_frame=stored.es_frame,
                reference_ef_percent=stored.ef_percent,
            )
        )
    write_csv(folder / layout.EF_FILE, measure_patients(measured), COLUMNS)
    phases = {item.case: (item.ed_frame, item.es_frame) for item in measured}
    summary = evaluate_folder(
        folder, setup.references, labels=setup.description.structures, cases=setup.val, phases=phases
    )
    if setup.plan.multi_dataset:
        summary["datasets"] = summarise_datasets(summary, setup)
    write_json(folder / layout.SUMMARY_FILE, summary)
    return summary


def summarise_datasets(summary: Mapping[str, Any], setup: FoldSetup) -> dict[str, Any]:
    """Means of the parts of a joint's validation: dataset -> `cases`, `frames`, `mean`, as in the whole summary."""
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for case, judged in summary["per_case"].items():
        parts.setdefault(setup.store.case(case).dataset, []).append(judged)
    return {
        name: {
            "cases": len(judged),
            "frames": sum(len(case["frames"]) for case in judged),
            "mean": {structure: summarise(judged, structure) for structure in summary["labels"]},
        }
        for name, judged in sorted(parts.items())
    }


def predict_stored_case(
    network: nn.Module, setup: FoldSetup, stored: StoredCase, *, stride: int, save_to: Path, prompts: Any = None
) -> np.ndarray:
    """Predict one preprocessed case and save mask and probabilities.

    Returns:
        the label mask (T, H, W) on the native grid.
    """
    case = stored.case
    probabilities = segment_clip(
        network,
        torch.from_numpy(setup.store.frames(case)),
        normalise=normaliser(stored.mean, stored.std, setup.plan.normalisation),
        window=setup.plan.frames,
        stride=stride,
        classes=setup.description.classes,
        batch=setup.plan.batch_size if setup.plan.frames == 1 else 1,
        prompts=prompts,
    )
    predicted = ClipProbabilities(probabilities, stored.geometry)
    save_probabilities(save_to / layout.probabilities_file(case), predicted)
    mask = predicted.labels()
    like = Clip(mask, stored.spacing_mm, stored.frame_time_ms, source=case)
    write_mask(save_to / layout.mask_file(case), mask, like=like)
    return mask
