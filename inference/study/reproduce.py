"""A paper's tables trained anew: what they need is planned, trained and tested, and stands beside what was printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from echoplan import layout
from echoplan.dataset import DatasetDescription, EchoDataset
from echoplan.device import fast_dtype
from echoplan.errors import EchoPlanError
from echoplan.multi_dataset import MultiDataset
from echoplan.networks.complexity import count_gmac, count_parameters, seconds_of
from echoplan.networks.weights import no_downloads
from echoplan.parallel_map import run_cases
from echoplan.paths import Folders
from echoplan.plans import Configuration, Plan

from ...experiment_planning.rules import LARGEST_SIDE
from ...experiment_planning.splits import paper_split
from ...preprocessing.dataset import preprocess_dataset
from ...preprocessing.store import ClipStore
from ...training.fold import FoldSetup
from ...training.initialization import initial_network
from ...training.methods import Method, find_method
from ...training.model_folder import ModelFolder
from ...training.prompts import CasePrompts
from ...training.validation import judge_sampled
from .grid import EVERYTHING, OWN_AUGMENTATION, Cell, StudyRequest
from .paper import Paper, PublishedRow, PublishedTable
from .published import PAPERS
from .study import Study, Training

UNTRAINED = "untrained"


def make_request(
    paper: str,
    tables: Sequence[PublishedTable],
    dataset: str,
    *,
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    trainer_settings: Mapping[str, Mapping[str, Any]],
    plans_name: str,
    name: str = "",
) -> StudyRequest:
    """The study that trains what some tables need.

    Raises:
        EchoPlanError: it makes no sense, or there are settings of a trainer that none of the paper's tables has.
    """
    trainers = dict.fromkeys(row.trainer for table in tables for row in table.rows)
    elsewhere = {row.trainer for table in PAPERS[paper].tables for row in table.rows} - {*trainers}
    request = StudyRequest(
        dataset=dataset,
        trainers=tuple(trainers),
        name=name or f"reproduce_{paper}",
        seeds=tuple(seeds),
        settings=settings,
        trainer_settings={name: own for name, own in trainer_settings.items() if name not in elsewhere},
        plans_name=plans_name,
    )
    request.check()
    return request


def cells_of_tables(tables: Sequence[PublishedTable], request: StudyRequest) -> list[Cell]:
    """What is trained, each once, though several rows may be of it."""
    rows = [row for table in tables for row in table.rows if row.tested and not row.untrained]
    kinds = dict.fromkeys((row.trainer, row.settings) for row in rows)
    return [cell_of(trainer, settings, seed) for trainer, settings in kinds for seed in request.seeds]


def cell_of(trainer: str, settings: tuple[str, ...], seed: int) -> Cell:
    """A row's training on all patients; its frames are those of the method, until a plan says which."""
    frames = find_method(trainer).requirements.frames
    return Cell(trainer, EVERYTHING, frames, OWN_AUGMENTATION, seed, settings)


@dataclass(frozen=True)
class Reproduction:
    """A paper's tables with the study that trains them.

    Attributes:
        paper, tables: which.
        study: its trainings.
        external: public datasets that networks are tested on, by their names in papers -> name, id or folder name.
        weights: trainer -> a file to start from, instead of the usual places.
    """

    paper: Paper
    tables: Sequence[PublishedTable]
    study: Study
    external: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, Path] = field(default_factory=dict)

    def rows(self) -> Iterator[tuple[PublishedTable, PublishedRow]]:
        """Every row with its table."""
        for table in self.tables:
            for row in table.rows:
                yield table, row

    def trainings(self, row: PublishedRow) -> list[Training]:
        """A row's, one a seed."""
        own = row.trainer, row.settings
        return [each for each in self.study.trainings if (each.cell.trainer, each.cell.settings) == own]

    def homes(self, row: PublishedRow) -> list[Path]:
        """The folders of a row's finished networks: the fold of each seed, or one of weights as they were published."""
        if row.untrained:
            digest = self.study.weights.get(row.trainer, "")  # other weights are another network
            return [self.study.folder / UNTRAINED / f"{row.trainer}{digest and f'__{digest[:8]}'}"]
        return [training.setup.folder for training in self.trainings(row) if training.finished]

    def setup(self, row: PublishedRow) -> FoldSetup:
        """The fold that the row's networks are of."""
        fold = self.study.request.folds[0]
        return self.study.setups[row.trainer, fold]

    def method(self, row: PublishedRow) -> Method[Any]:
        """The row's, with what the plan, the command line and the row set."""
        settings = self.study.request.settings_of(cell_of(row.trainer, row.settings, 0))
        return find_method(row.trainer).with_settings({**self.setup(row).plan.settings, **settings})


def tested_folder(home: Path, table: PublishedTable, row: PublishedRow) -> Path:
    """Where the results of a row's test lie."""
    dataset = row.tested_on or table.dataset
    if dataset == table.dataset and not row.boxes and not table.in_pixels:
        return home / layout.TEST
    return home / "tested" / f"{dataset}{'__boxes' if row.boxes else ''}{'__px' if table.in_pixels else ''}"


def test_networks(where: Folders, reproduction: Reproduction, *, device: torch.device | str) -> dict[str, str]:
    """Test every finished network as its rows ask; what is tested already stays.

    Returns:
        what could not be tested -> why.
    """
    jobs: dict[str, tuple[Any, ...]] = {}
    for table, row in reproduction.rows():
        if not row.tested:
            continue
        for home in reproduction.homes(row):
            folder = tested_folder(home, table, row)
            if not (folder / layout.SUMMARY_FILE).is_file():
                name = str(folder.relative_to(reproduction.study.folder))
                jobs[name] = (where, reproduction, table, row, home, folder, device)
    return run_cases(_test, jobs, description="tests").failures


def _test(
    where: Folders,
    reproduction: Reproduction,
    table: PublishedTable,
    row: PublishedRow,
    home: Path,
    folder: Path,
    device: torch.device | str,
) -> None:
    setup, method = reproduction.setup(row), reproduction.method(row)
    if row.untrained:
        classes, weights = setup.description.classes, reproduction.weights.get(row.trainer, True)
        network = method.build_network(size=setup.plan.size, classes=classes, pretrained=weights).to(device).eval()
    else:
        network = ModelFolder.read(home.parent).load_network(setup.fold, device=device)
    dataset = row.tested_on or table.dataset
    if dataset != table.dataset:
        setup = external_setup(where, setup, reproduction.external, dataset, row.trainer)
    prompt = CasePrompts(network, setup, "box") if row.boxes else method.prompt_of_cases(network, setup)
    judge_sampled(network, setup, setup.test, folder, prompt=prompt, in_pixels=table.in_pixels)


def external_setup(
    where: Folders, setup: FoldSetup, external: Mapping[str, str], dataset: str, trainer: str
) -> FoldSetup:
    """A fold whose test is another dataset's labelled cases, on the grid of the fold's plan; they are preprocessed.

    Raises:
        EchoPlanError: the dataset is not named, or its labels are others.
    """
    if dataset not in external:
        raise EchoPlanError(f"the table also tests on {dataset}", remedy=f"name it: --external {dataset.split('-')[0]}")
    other = MultiDataset.read(where, external[dataset])
    check_labels(other.name, other.description, setup.description)
    plan = replace(setup.plan, dataset=other.name, datasets={})
    whole = Plan(other.name, plan.plans_name, {}, {trainer: Configuration(trainer, plan.decisions)})
    preprocess_dataset(where, other, whole, trainers=[trainer])
    store = ClipStore(where.preprocessed / other.name / plan.store)
    labelled = tuple(case for case in store.cases() if store.case(case).labelled_frames)
    return replace(setup, plan=plan, description=other.description, store=store, train=(), val=(), test=labelled)


def check_labels(name: str, tested: DatasetDescription, trained: DatasetDescription) -> None:
    """Raise an EchoPlanError where a dataset to test on has other labels than the one trained on."""
    if tested.labels != trained.labels:
        raise EchoPlanError(
            f"{name} has the labels {tested.labels}, the dataset to train on {trained.labels}",
            remedy="convert both with the same --structures",
        )


def describe(where: Folders, paper: Paper, tables: Sequence[PublishedTable], request: StudyRequest, *,
             weights: Mapping[str, Path], external: Mapping[str, str], device: torch.device) -> list[str]:  # fmt: skip
    """What would be trained, about how long that takes on the device, and what is missing; nothing is written.

    The hours are three times the forward pass's multiply-accumulates at the speed that a convolution reaches here, and
    real trainings take up to a few times that.
    """
    raw = MultiDataset.read(where, request.dataset).sources[0].raw
    speed, hours, lines, missing = _speed(device), {}, [], []
    trained = {cell for cell in cells_of_tables(tables, request) if cell.seed == request.seeds[0]}
    rows = [row for table in tables for row in table.rows if row.tested]
    for cell in dict.fromkeys(cell_of(row.trainer, row.settings, request.seeds[0]) for row in rows):
        method = find_method(cell.trainer)
        protocol = method.protocols.get(raw.description.published)
        planned = {} if protocol is None else protocol.settings
        method = method.with_settings({**planned, **request.settings_of(cell)})
        side = (protocol.size if protocol else method.requirements.paper_size) or LARGEST_SIDE
        with torch.device("meta"):
            network = method.build_network(size=(side, side), classes=raw.description.classes)
        kind = cell.trainer, count_parameters(network)  # rows of equally large networks cost about the same
        if kind not in hours:
            hours[kind] = _hours(method, network, raw, side, speed)
            classes = raw.description.classes
            if reason := _missing_weights(method, (side, side), classes, weights.get(cell.trainer)):
                missing.append(f"{cell.trainer}: {reason}")
        if cell in trained:
            lines.append(f"  {cell.label}: {len(request.seeds)} trainings, about {hours[kind]:.2g} h each")
    for row in rows:
        if row.tested_on not in ("", raw.description.published, *external):
            missing.append(f"{row.tested_on}: the table also tests on it: name it with --external")
    return [*(lines or ["  nothing to train"]), *(f"  missing for {reason}" for reason in dict.fromkeys(missing))]


def _speed(device: torch.device) -> float:
    """The GMAC a second of a 3 x 3 convolution in the precision of training."""
    side, channels, batch = 128, 64, 8
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1, device=device, dtype=fast_dtype(device))
    images = torch.zeros(batch, channels, side, side, device=device, dtype=fast_dtype(device))
    seconds = seconds_of(layer, images, least=0.5)
    return batch * channels**2 * 9 * side**2 / 1e9 / seconds


def _hours(method: Method[Any], network: torch.nn.Module, raw: EchoDataset, side: int, speed: float) -> float:
    """Of one training on all of a dataset's labelled cases that are in train, as the paper's split has them."""
    frames, recipe = method.requirements.frames, method.recipe
    few = min(frames, 2)  # enough to know what a frame costs
    gmac = count_gmac(network, (1, few, 1, side, side)) * frames / few
    protocol = method.protocols.get(raw.description.published)
    cases = [case for case in raw.cases if case.label is not None]
    if protocol is not None:
        parts = set(paper_split(raw, protocol.split)["train"])
        cases = [case for case in cases if case.case in parts]
    each = 1 if frames > 1 else 2  # a frame network sees end-diastole and end-systole
    batch = recipe.batch_size or method.requirements.batch_size
    samples = recipe.iterations_per_epoch * batch if recipe.iterations_per_epoch else each * len(cases)
    return 3 * gmac * samples * recipe.epochs / speed / 3600


def _missing_weights(method: Method[Any], size: tuple[int, int], classes: int, file: Path | None) -> str:
    """Why the weights that a training starts from are not here; "" where they are, or none are wanted."""
    if file is None and not getattr(method.recipe, "pretrained", False):
        return ""
    try:
        with no_downloads(), torch.device("meta"):
            initial_network(method, size=size, classes=classes, weights=file)
    except EchoPlanError as error:
        return f"{error.file}: {error.problem}" if file else error.problem
    return ""
