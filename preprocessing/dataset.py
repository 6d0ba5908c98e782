"""Preprocess a whole dataset: one store for each network grid that the plan's trainers use."""

from __future__ import annotations

import logging
import multiprocessing
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from echoplan import layout
from echoplan.dataset import Case
from echoplan.errors import EchoPlanError
from echoplan.files import plain, read_json, sweep_partial_files, write_json
from echoplan.imageio import write_mask
from echoplan.multi_dataset import MultiDataset, SourceDataset
from echoplan.names import check_cases
from echoplan.parallel_map import CaseResults, run_cases, write_warnings
from echoplan.paths import Folders
from echoplan.plans import Plan, ResolvedPlan
from echoplan.sector import detect_sector

from .clip import labelled_frames, phases_from_labels, preprocess_clip, sector_statistics, to_uint8
from .store import ClipStore, StoredCase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreSettings:
    """What a store's content depends on.

    Attributes:
        name: the store's folder.
        size: the network's grid (h, w).
        protocol: "aspect", "stretch" or "nearest".
        crop: source dataset -> whether its clips are cropped.
    """

    name: str
    size: tuple[int, int]
    protocol: str
    crop: Mapping[str, bool]

    @classmethod
    def of_plan(cls, plan: ResolvedPlan) -> StoreSettings:
        """What the plan of a trainer asks for."""
        crop = {name: own.crop for name, own in plan.each().items()}
        return cls(plan.store, plan.size, plan.protocol, crop)

    def to_dict(self) -> dict[str, Any]:
        """As store.json holds it: of a single dataset, `crop` alone."""
        crop = dict(self.crop) if len(self.crop) > 1 else next(iter(self.crop.values()))
        return {"size": list(self.size), "protocol": self.protocol, "crop": crop}


def stores_of_plan(plan: Plan, trainers: Sequence[str] | None = None) -> tuple[StoreSettings, ...]:
    """The stores that the plan's trainers read, each once.

    Args:
        plan: the plan.
        trainers: only these trainers' stores; None: all.

    Raises:
        EchoPlanError: a trainer is not in the plan, or two trainers want one store with different content.
    """
    stores: dict[str, StoreSettings] = {}
    for trainer in plan.trainers if trainers is None else trainers:
        settings = StoreSettings.of_plan(plan.resolve(trainer))
        if stores.setdefault(settings.name, settings) != settings:
            raise EchoPlanError(
                f"{trainer} wants the store {settings.name} cropped otherwise than another trainer of the plan",
                remedy='give both the same "crop" in the plan',
            )
    return tuple(stores.values())


def preprocess_dataset(
    folders: Folders,
    dataset: MultiDataset,
    plan: Plan,
    *,
    trainers: Sequence[str] | None = None,
    processes: int = 0,
    overwrite: bool = False,
    engine: Callable[..., CaseResults] | None = None,
) -> CaseResults:
    """Fill the stores of all training cases and copy their labels to gt_segmentations/ as NIfTI.

    Of a plan that follows the papers also of the test cases, which their splits deal out anew and judge on the grid.

    A case that is finished is kept, unless its files, its row in cases.csv or the store's settings have changed since.

    Args:
        folders: where preprocessed data lies.
        dataset: what the plan is of.
        plan: says which stores are needed.
        trainers: only these trainers' stores; None: those of all trainers in the plan.
        processes: worker processes; 0: none.
        overwrite: do finished cases again.
        engine: works through the cases instead of `run_cases`, called as engine(function, arguments, description=...).

    Returns:
        The cases done (True where there was work, False where it was finished before), and why the others failed.

    Raises:
        EchoPlanError: the disk is full, or the plan does not fit.
    """
    target = folders.preprocessed / dataset.name
    stores = stores_of_plan(plan, trainers)
    unplanned = [source.name for source in dataset.sources if any(source.name not in item.crop for item in stores)]
    if unplanned:
        raise EchoPlanError(
            f"the plan is of {plan.dataset} and knows no dataset {' or '.join(unplanned)}",
            remedy=f"plan again: echoplan_plan_and_preprocess -d {dataset.name}",
        )
    check_cases((case.case for case in dataset.cases), file=dataset.name)  # of several datasets together
    sweep_partial_files(target)
    for settings in stores:
        _prepare_store(target / settings.name, settings)
    arguments = {}
    everything = any(plan.resolve(trainer).split != "folds" for trainer in trainers or plan.trainers)
    for source in dataset.sources:
        # A worker gets its own row alone: ten thousand rows for each of ten thousand cases would take minutes to send.
        rowless = replace(source, raw=replace(source.raw, cases=()))
        for case in source.cases():
            if everything or case.split != "test":
                arguments[case.case] = (rowless, case, target, stores, overwrite)
    work = partial(run_cases, processes=processes) if engine is None else engine
    results = work(_preprocess_case, arguments, description="preprocessing")
    write_warnings(target, results)
    kept = sum(not worked for worked in results.done.values())
    logger.info("%d cases preprocessed, %d were finished before", len(results.done) - kept, kept)
    return results


def _prepare_store(folder: Path, settings: StoreSettings) -> None:
    """Make the store's folder; empty it where it was made with other settings."""
    file = folder / layout.STORE_FILE
    if file.is_file() and read_json(file) == settings.to_dict():
        return
    if folder.is_dir() and any(folder.iterdir()):
        logger.info("%s was made with other settings and is made anew", folder.name)
        shutil.rmtree(folder)
    write_json(file, settings.to_dict())


def _preprocess_case(
    dataset: SourceDataset, case: Case, target: Path, settings: Sequence[StoreSettings], overwrite: bool
) -> bool:
    """Work one case into all stores; whether there was anything to do."""
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # the workers are the parallelism
    made_from = _made_from(dataset, case)
    ground_truth = target / layout.GROUND_TRUTH / layout.mask_file(case.case)
    missing = [item for item in settings if overwrite or not _finished(ClipStore(target / item.name), case, made_from)]
    if not missing and (case.label is None or ground_truth.is_file()):
        return False
    clip = dataset.raw.load_clip(case)
    if clip.scale_note:
        logger.warning("%s", clip.scale_note)
    mask = None if case.label is None else dataset.relabelled(dataset.raw.load_mask(case, clip=clip))
    if mask is not None:
        write_mask(ground_truth, mask, like=clip)
    end_diastole, end_systole = phases_from_labels(case, mask, dataset.target)
    row_mm, column_mm = clip.spacing_mm or (None, None)
    clip = replace(clip, frames=to_uint8(clip.frames, source=clip.source))
    box = detect_sector(clip.frames) if any(item.crop[dataset.name] for item in missing) else None
    for item in missing:
        crop = item.crop[dataset.name]
        frames, geometry = preprocess_clip(clip, size=item.size, protocol=item.protocol, crop=crop, crop_box=box)
        labels = None if mask is None else geometry.labels_to_network(mask)
        mean, std = sector_statistics(frames)
        stored = StoredCase(
            case=case.case,
            patient=case.patient,
            view=case.view,
            ef_percent=case.ef_percent,
            edv_ml=case.edv_ml,
            esv_ml=case.esv_ml,
            ed_frame=end_diastole,
            es_frame=end_systole,
            spacing_row_mm=row_mm,
            spacing_col_mm=column_mm,
            frame_time_ms=clip.frame_time_ms,
            exam=case.exam or clip.exam,
            scale_note=clip.scale_note,
            labelled_frames=() if mask is None else tuple(labelled_frames(mask)),
            native_frames=len(clip),
            dataset=dataset.name,
            crop=crop,
            geometry=geometry,
            mean=mean,
            std=std,
            source=made_from,
            space=clip.space,
        )
        ClipStore(target / item.name).write(stored, frames, labels)
    return True


def _finished(store: ClipStore, case: Case, made_from: Mapping[str, Any]) -> bool:
    """Whether a case is stored as it would be now; one that an earlier EchoPlan stored is not."""
    try:
        return store.has(case.case) and store.case(case.case).source == made_from
    except EchoPlanError:
        return False


def _made_from(dataset: SourceDataset, case: Case) -> dict[str, Any]:
    """What the case is made from, so that a change is noticed: its row, size and time of its files, its labels."""
    files = {}
    for name in filter(None, (case.image, case.label)):
        path = dataset.raw.folder / name
        if not path.exists():
            raise EchoPlanError(f"a file of case {case.case} is missing", file=path)
        status = path.stat()
        files[name] = [status.st_size, status.st_mtime_ns]
    shared = {} if dataset.alone else {"joint_labels": dict(dataset.labels)}
    return plain({"row": case.to_row(), "files": files, "labels": dict(dataset.raw.description.labels), **shared})
