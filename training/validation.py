"""Final validation of a fold: its own cases, predicted whole and judged on their native grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from echoplan import layout
from echoplan.imageio import Clip, write_mask
from echoplan.networks.batches import BatchSize, are_enough, in_groups, network_device, windows_together
from echoplan.networks.e3sam2.prompts import Prompts
from echoplan.networks.interface import labels_from_probabilities
from echoplan.networks.sliding_window import segment_clip
from echoplan.parallel_map import progress

from ..evaluation import evaluate_cases
from ..evaluation.metrics import summarise
from ..preprocessing.clip import NormalisedFrames
from ..preprocessing.probabilities import ClipProbabilities, save_probabilities
from ..preprocessing.store import StoredCase
from .data.sampling import clip_samples
from .fold import FoldSetup
from .model_folder import normalisation_for


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
        stride: frames from one of a window's frames to the next; None is the plan's, of each source dataset.
        folder: for the results; None is the fold's validation/.
        prompt: case -> what a promptable network is told; None tells it nothing.

    Returns:
        the summary; left behind are validation/<case>.nii.gz (masks on the native grid), <case>.npz (probabilities on
        the network's grid), summary.json and ef.csv. Of several datasets, "datasets" in the summary has each one's
        `cases`, `frames` and `mean`.
    """
    folder = folder or setup.folder / layout.VALIDATION
    predict_cases(network, setup, setup.val, save_to=folder, stride=stride, prompt=prompt)
    description = setup.description
    evaluation = evaluate_cases(
        [judged_case(setup.store.case(case)) for case in setup.val],
        folder,
        setup.references,
        labels=description.structures,
        target=description.target,
    )
    more = {"datasets": summarise_datasets(evaluation.summary(), setup)} if setup.plan.multi_dataset else {}
    return evaluation.write(folder, **more)


def judge_sampled(
    network: nn.Module,
    setup: FoldSetup,
    cases: Iterable[str],
    folder: Path,
    *,
    prompt: Callable[[str], Prompts | Tensor | None] | None = None,
    in_pixels: bool = False,
) -> dict[str, Any]:
    """Predict and judge what the papers do: the frames that they give their networks, on the network's grid.

    A clip network is given T frames evenly from end-diastole to end-systole, and all that are labelled count; a frame
    network each labelled frame.

    Args:
        network: in evaluation mode, on its device.
        setup: the fold.
        cases: of its validation, or its paper's test.
        folder: for the results.
        prompt: as `validate_fold` takes it; of a frame network of each frame of the clip, (T, ...).
        in_pixels: whether distances are in pixels of the grid, whatever the spacing.

    Returns:
        the summary, with `patients` and `views` of the cases; left behind are the masks of these frames, <case>.nii.gz
        and references/<case>.nii.gz, summary.json and ef.csv.
    """
    judged, plan, description = [], setup.plan, setup.description
    wanted = []
    for name in cases:
        stored = setup.store.case(name)
        frames = stored.labelled_frames if plan.frames == 1 else clip_samples([stored], plan.frames)[0].frames
        wanted.append(_Wanted(stored, frames))
    for each, probabilities in _predicted(network, setup, wanted, prompt, description=folder.name):
        stored, frames, name = each.stored, each.frames, each.stored.case
        mask = labels_from_probabilities(probabilities)
        like = Clip(mask, None if in_pixels else stored.geometry.spacing_mm, source=name)
        write_mask(folder / layout.mask_file(name), mask, like=like)
        write_mask(folder / layout.REFERENCES / layout.mask_file(name), setup.store.labels(name, frames), like=like)
        judged.append(_sampled_case(stored, frames, like.spacing_mm))
    patients = {case.case: case.patient for case in judged}
    views = {case.case: case.view for case in judged}
    return evaluate_cases(
        judged,
        folder,
        folder / layout.REFERENCES,
        labels=description.structures,
        target=description.target,
    ).write(folder, patients=patients, views=views)


@dataclass(frozen=True)
class _Wanted:
    """Frames of a case that are to be predicted, as a clip, by windows of so large a stride."""

    stored: StoredCase
    frames: tuple[int, ...]
    stride: int = 1


def _predicted(
    network: nn.Module,
    setup: FoldSetup,
    wanted: Sequence[_Wanted],
    prompt: Callable[[str], Prompts | Tensor | None] | None,
    *,
    description: str,
) -> Iterator[tuple[_Wanted, np.ndarray]]:
    """Each clip and its probabilities (K, T, h, w), in turn; clips go through the network together as in prediction."""
    plan, device, normalisation = setup.plan, network_device(network), normalisation_for(network, setup.plan)
    batch = BatchSize(windows_together(network, frames=plan.frames, size=plan.size))
    groups = in_groups(
        wanted,
        share=lambda one, other: prompt is None and one.stride == other.stride,
        enough=lambda group: are_enough(network, [(len(clip.frames), *plan.size) for clip in group]),
    )
    with progress(range(len(wanted)), description=description) as bar:
        for group in groups:
            first, lengths = group[0], [len(clip.frames) for clip in group]
            seen = [setup.store.frames(clip.stored.case, clip.frames) for clip in group]
            statistics = [(clip.stored.mean, clip.stored.std) for clip in group]
            probabilities = segment_clip(
                network,
                NormalisedFrames(seen, statistics, normalisation, device),
                clips=lengths,
                window=plan.frames,
                stride=first.stride,
                classes=setup.description.classes,
                batch=batch,
                prompts=None if prompt is None else _told(prompt(first.stored.case), first.frames),
            )
            yield from zip(group, np.split(probabilities, np.cumsum(lengths)[:-1], axis=1), strict=True)
            bar.update(len(group))


def _told(prompts: Prompts | Tensor | None, frames: Sequence[int]) -> Prompts | Tensor | None:
    """What a network is told of a whole case, for some of its frames."""
    return prompts.within(frames) if isinstance(prompts, Prompts) else None if prompts is None else prompts[[*frames]]


def _sampled_case(stored: StoredCase, frames: tuple[int, ...], spacing_mm: tuple[float, float] | None) -> StoredCase:
    """What is known of the clip that some frames of a case on the network's grid are."""
    row, column = spacing_mm or (None, None)
    ed, es = (frames.index(frame) if frame in frames else None for frame in (stored.ed_frame, stored.es_frame))
    return replace(
        judged_case(stored),
        ed_frame=ed,
        es_frame=es,
        spacing_row_mm=row,
        spacing_col_mm=column,
        frame_time_ms=None,
        native_frames=len(frames),
    )


def judged_case(stored: StoredCase) -> StoredCase:
    """A cross-validated case as it is judged: of the reference measurements by the EF alone."""
    return replace(stored, edv_ml=None, esv_ml=None)


def summarise_datasets(summary: Mapping[str, Any], setup: FoldSetup) -> dict[str, Any]:
    """Each source dataset's part of a validation: dataset -> `cases`, `frames`, `mean`, as in the whole summary."""
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


def predict_cases(
    network: nn.Module,
    setup: FoldSetup,
    cases: Iterable[str],
    *,
    save_to: Path,
    stride: int | None = None,
    prompt: Callable[[str], Prompts | Tensor | None] | None = None,
) -> None:
    """Predict preprocessed cases whole; save each one's probabilities, and its mask, labels on the native grid.

    Args:
        network, setup, stride, prompt: as `validate_fold` takes them.
        cases: their names.
        save_to: a folder.
    """
    wanted = []
    for stored in map(setup.store.case, cases):
        step = setup.plan_of(stored).window_stride if stride is None else stride
        wanted.append(_Wanted(stored, tuple(range(stored.native_frames)), step))
    for each, probabilities in _predicted(network, setup, wanted, prompt, description=save_to.name):
        stored = each.stored
        predicted = ClipProbabilities(probabilities, stored.geometry)
        save_probabilities(save_to / layout.probabilities_file(stored.case), predicted)
        mask = predicted.labels()
        like = Clip(mask, stored.spacing_mm, stored.frame_time_ms, source=stored.case, space=stored.space)
        write_mask(save_to / layout.mask_file(stored.case), mask, like=like)
