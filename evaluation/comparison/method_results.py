"""What methods left on the same cases, read for a comparison: of cross-validation, or of folders of predictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echoplan import layout
from echoplan.dataset import Case
from echoplan.errors import EchoPlanError
from echoplan.files import write_json
from echoplan.paths import dataset_name

from ..evaluate_cases import cases_in, evaluate_cases, find_masks
from ..ventricle.volumes import VolumeRule
from .scores import JUDGED_FRAMES, MASKS, REFERENCE_PIXELS, frame_scores, read_ef_table, read_summary

if TYPE_CHECKING:
    import pandas as pd

_NAMED = 5  # cases named in an error


@dataclass(frozen=True)
class MethodResults:
    """One method's results.

    Attributes:
        name: as tables show it.
        source: the folder they were read from.
        scores: the long table of `frame_scores` of all structures, each case a patient of its own.
        ef: its EF table, as `read_ef_table` gives it; empty where there is none.
        folds: of cross-validation; empty otherwise.
        unjudged: cases whose prediction is missing or broken -> why.
    """

    name: str
    source: Path
    scores: pd.DataFrame
    ef: pd.DataFrame
    folds: tuple[int, ...] = ()
    unjudged: Mapping[str, str] = field(default_factory=dict)

    @property
    def cases(self) -> list[str]:
        """Those that were judged."""
        return self.scores.loc[self.scores["metric"] == JUDGED_FRAMES, "case"].to_list()


def read_crossvalidation(
    results: Path,
    trainers: Sequence[str] | None = None,
    *,
    rule: VolumeRule | None = None,
    reference: str = MASKS,
) -> tuple[list[MethodResults], list[str]]:
    """The cross-validation of several trained models of one dataset, on the folds that all of them have.

    Args:
        results: the dataset's results folder.
        trainers: names of trainers or of model folders, in the order to show; None: every model with a validated fold.
        rule, reference: of EF, as `read_ef_table` takes them.

    Returns:
        the methods, and notes on the folds left out.

    Raises:
        EchoPlanError: a trainer is not trained or names several models, fewer than two methods are there, or they have
            no fold in common.

    Example:
        >>> from pathlib import Path
        >>> from echoplan.evaluation import read_crossvalidation
        >>> from echoplan.files import write_json
        >>> for trainer in ("UNetTrainer", "PKEchoNetTrainer"):
        ...     model = Path(f"{trainer}__EchoPlans__frame")
        ...     write_json(model / "plans.json", {})
        ...     write_json(model / "fold_0" / "validation" / "summary.json",
        ...                {"labels": {"LV": 1}, "per_case": {}, "missing": [], "failures": {}})
        >>> methods, notes = read_crossvalidation(Path.cwd())
        >>> [(method.name, method.folds) for method in methods]
        [('PKEchoNetTrainer', (0,)), ('UNetTrainer', (0,))]
    """

    models = _find_models(results, trainers)
    folds = {model: _validated_folds(model) for model in models}
    common = sorted(set.intersection(*map(set, folds.values())))
    if not common:
        there = "; ".join(
            f"{name}: {', '.join(map(str, sorted(folds[model]))) or 'none'}" for model, name in models.items()
        )
        raise EchoPlanError(
            f"the methods have no validated fold in common ({there})",
            file=results,
            remedy=f"train the folds they lack, as in echoplan_train {dataset_name(results)} 0 -tr TRAINER",
        )
    methods, notes = [], []
    for model, name in models.items():
        validations = {fold: folds[model][fold] for fold in common}
        methods.append(_validated(name, model, validations, rule, reference))
        more = sorted(set(folds[model]) - set(common))
        if more:
            notes.append(f"{name}: fold {', '.join(map(str, more))} left out, which not all methods have.")
    return methods, notes


def _validated(
    name: str, model: Path, validations: Mapping[int, Path], rule: VolumeRule | None, reference: str
) -> MethodResults:
    """The folds' validations of one model as one result."""
    import pandas as pd

    summaries = [read_summary(folder / layout.SUMMARY_FILE) for folder in validations.values()]
    ef = [read_ef_table(folder, rule, reference) for folder in validations.values()]
    return MethodResults(
        name,
        model,
        pd.concat([frame_scores(summary["per_case"]) for summary in summaries], ignore_index=True),
        pd.concat(ef, ignore_index=True),
        tuple(validations),
        {case: why for summary in summaries for case, why in _unjudged(summary).items()},
    )


def read_predictions(
    folders: Mapping[str, Path],
    references: Path,
    *,
    labels: Mapping[str, int],
    cases: Sequence[Case] = (),
    target: str | None = None,
    rule: VolumeRule | None = None,
    reference: str = MASKS,
    processes: int = 0,
) -> list[MethodResults]:
    """Folders of predicted masks of the same clips, and the EF tables in them (ef_report.csv, ef.csv).

    A folder's summary.json is taken where these references judged it, it has all labels and is newer than every mask;
    otherwise the folder is evaluated and the file written.

    Args:
        folders: method -> folder.
        references: folder of reference masks.
        labels: structure -> value.
        cases: what is known of the clips: their end-diastoles and end-systoles.
        target: the structure that is measured where a rule is named.
        rule: by which EF is measured in the masks, at the phases that the cases name, and written into each folder
            (ef.csv, ef_camus.csv, ...); None: the EF tables that are there.
        reference: of EF, as `read_ef_table` takes it.
        processes: worker processes; 0 works in this one.

    Raises:
        EchoPlanError: a folder is missing, or there is nothing to evaluate.

    Example:
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from echoplan.evaluation import read_predictions
        >>> from echoplan.imageio import Clip, write_mask
        >>> mask = np.zeros((1, 32, 32), dtype=np.uint8)
        >>> mask[0, 8:24, 8:24] = 1
        >>> for name in ("truth", "unet"):
        ...     Path(name).mkdir()
        ...     write_mask(Path(name, "a.nii.gz"), mask, like=Clip(mask, (0.5, 0.5), None))
        >>> (method,) = read_predictions({"unet": Path("unet")}, Path("truth"), labels={"LV": 1})
        >>> method.cases, len(method.ef)
        (['a'], 0)
    """
    structures = {name: value for name, value in labels.items() if value != 0}
    phases = {case.case: (case.ed_frame, case.es_frame) for case in cases}
    methods = []
    for name, folder in folders.items():
        summary = None if rule else _current_summary(folder, references, structures)
        if summary is None:
            judged, target = cases_in(references, cases, headers=rule is not None), target if rule else None
            found = evaluate_cases(judged, folder, references, labels=structures, target=target, processes=processes)
            if rule:
                found.write_rows(folder)
            summary = found.summary() | judged_by(references)
            write_json(folder / layout.SUMMARY_FILE, summary)
        per_case = {case: _with_phases(found, phases.get(case)) for case, found in summary["per_case"].items()}
        ef = read_ef_table(folder, rule, reference)
        methods.append(MethodResults(name, folder, frame_scores(per_case), ef, unjudged=_unjudged(summary)))
    return methods


def check_same_frames(methods: Sequence[MethodResults], structure: str) -> None:
    """Check that all methods were judged on the same frames, against the same references.

    Raises:
        EchoPlanError: they were not, or one has no figures of the structure; the message names cases.
    """
    import pandas as pd

    first, *others = methods
    pixels = {method.name: _reference_pixels(method, structure) for method in methods}
    for method in others:
        judged = set(method.cases)
        different = sorted(judged.symmetric_difference(first.cases))
        if different:
            lacking = [case for case in different if case not in judged]
            who, cases = (method, lacking) if lacking else (first, different)
            reason = next((f"; {case}: {who.unjudged[case]}" for case in cases if case in who.unjudged), "")
            raise EchoPlanError(
                f"{who.name} has no result of {len(cases)} of the cases compared: {_named(cases)}{reason}",
                file=who.source,
                remedy="predict these cases too (echoplan_train ... --val, or echoplan_predict), then compare again",
            )
        both = pd.concat([pixels[first.name], pixels[method.name]], axis=1)
        wrong = sorted(set(both.index[both.iloc[:, 0] != both.iloc[:, 1]].get_level_values("case")))
        if wrong:
            raise EchoPlanError(
                f"{first.name} and {method.name} were not judged against the same references in {len(wrong)} cases: "
                f"{_named(wrong)}",
                file=method.source,
                remedy="validate or evaluate again those whose summary.json is older than the references",
            )
    if not first.cases:
        reason = next((f"; {case}: {why}" for case, why in first.unjudged.items()), "")
        raise EchoPlanError(f"no case was judged{reason}", file=first.source)


def _find_models(results: Path, trainers: Sequence[str] | None) -> dict[Path, str]:
    """Model folder -> the method's name: the trainer's, or the folder's where a trainer occurs twice."""
    there = layout.model_folders(results)
    if trainers is None:
        chosen = [model for model in there if _validated_folds(model)]
    else:
        untrained = sorted(path.parent for path in results.glob(f"*/*/{layout.ZERO_SHOT_FILE}"))
        chosen = list(dict.fromkeys(_find_model(results, [*there, *untrained], name) for name in trainers))
    if len(chosen) < 2:
        names = ", ".join(model.name for model in there) or "none"
        raise EchoPlanError(
            f"a comparison needs two methods, there is {'one' if chosen else 'none'} (trained: {names})",
            file=results,
            remedy=f"train another, as in echoplan_train {dataset_name(results)} all -tr PKEchoNetTrainer",
        )
    times = Counter(_trainer(model) for model in chosen)
    return {model: _trainer(model) if times[_trainer(model)] == 1 else model.name for model in chosen}


def _find_model(results: Path, there: Sequence[Path], name: str) -> Path:
    trainer = name.rpartition(":")[2]  # path/to/file.py:Class
    fitting = [model for model in there if trainer in (model.name, _trainer(model))]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise EchoPlanError(
            f"{len(fitting)} models are of {name}",
            file=results,
            remedy=f"name the folder instead: {', '.join(model.name for model in fitting)}",
        )
    raise EchoPlanError(
        f"{name} is not trained (trained: {', '.join(model.name for model in there) or 'none'})",
        file=results,
        remedy=f"echoplan_train {dataset_name(results)} all -tr {name}",
    )


def _trainer(model: Path) -> str:
    return model.name.split("__")[0]


def _validated_folds(model: Path) -> dict[int, Path]:
    """Fold -> its validation folder, where a finished validation lies."""
    return {fold: file.parent for fold, file in layout.folds_with(model, f"{layout.VALIDATION}/{layout.SUMMARY_FILE}")}


def judged_by(references: Path) -> dict[str, str]:
    """What a folder's summary.json holds of the references, by which it is known whether they judged it."""
    return {"references": str(references.resolve())}


def _current_summary(folder: Path, references: Path, structures: Mapping[str, int]) -> dict[str, Any] | None:
    """The folder's summary.json, None where it is missing or must be made again."""
    file = folder / layout.SUMMARY_FILE
    if not file.is_file():
        return None
    truths = find_masks(references)
    written = file.stat().st_mtime
    if any(mask.stat().st_mtime > written for mask in (*truths.values(), *find_masks(folder).values())):
        return None
    summary = read_summary(file)
    judged = {*summary["per_case"], *_unjudged(summary)}
    has_labels = structures.items() <= summary["labels"].items()
    counted = all("both_empty" in groups["all"] for groups in summary["mean"].values() if groups)
    these = judged_by(references).items() <= summary.items()
    return summary if these and has_labels and counted and judged == set(truths) else None


def _unjudged(summary: Mapping[str, Any]) -> dict[str, str]:
    missing = dict.fromkeys(summary["missing"], "there is no prediction")
    return dict(sorted({**missing, **summary["failures"]}.items()))


def _with_phases(found: Mapping[str, Any], phases: tuple[int | None, int | None] | None) -> Mapping[str, Any]:
    return found if phases is None else {**found, "ed_frame": phases[0], "es_frame": phases[1]}


def _reference_pixels(method: MethodResults, structure: str) -> pd.Series[float]:
    """Size of the structure's reference in every frame judged, by case and frame.

    Raises:
        EchoPlanError: frames were judged, but not for this structure.
    """
    scores = method.scores[method.scores["phase"] == "all"].set_index(["case", "frame"])
    pixels = scores.loc[(scores["metric"] == REFERENCE_PIXELS) & (scores["structure"] == structure), "value"]
    judged = scores.loc[scores["metric"] == JUDGED_FRAMES, "value"]
    if len(pixels) < judged.sum():
        raise EchoPlanError(
            f"{method.name} has no figures of {structure!r}", file=method.source, remedy="name another --structure"
        )
    return pixels


def _named(cases: Sequence[str]) -> str:
    return ", ".join(cases[:_NAMED]) + (", ..." if len(cases) > _NAMED else "")
