"""The raw dataset: dataset.json and cases.csv, read, validated, written.

Dataset001_CAMUS/
    dataset.json      what the labels mean (`DatasetDescription`)
    cases.csv         one row a clip (`Case`)
    imagesTr/ labelsTr/ imagesTs/ labelsTs/
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from echoplan import layout
from echoplan.case_warnings import few
from echoplan.cases_table import (
    COLUMNS,
    EXAM,
    POSITIVE,
    columns_of,
    frame_of,
    number_of,
    warn_of_views,
)
from echoplan.errors import EchoPlanError, printable
from echoplan.files import from_cell, read_json, write_csv, write_json
from echoplan.imageio import Clip, read_clip
from echoplan.imageio.clip import ClipInfo, plausible_scale
from echoplan.labels import IGNORE
from echoplan.masks import load_mask, without_empty_rest
from echoplan.names import check_cases, wrong_name, wrong_path
from echoplan.references import impossible_references
from echoplan.views import is_known, standard_view

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test", "")
_PUBLISHED = {"10.1109/TMI.2019.2900516": "CAMUS", "10.1038/s41586-020-2145-8": "EchoNet-Dynamic"}


@dataclass(frozen=True)
class DatasetDescription:
    """What dataset.json says.

    Attributes:
        name: the dataset's name.
        labels: structure -> value in the masks; "background" is 0.
        ignore_label: the value of pixels nobody labelled.
        target: the structure whose volume is measured.
        image_ending, label_ending: the usual file endings, for people; cases.csv names every file.
        licence, reference: the terms of the data and what to cite.
    """

    name: str
    labels: dict[str, int] = field(default_factory=lambda: {"background": 0, "LV": 1})
    ignore_label: int = IGNORE
    target: str = "LV"
    image_ending: str = ".nii.gz"
    label_ending: str = ".nii.gz"
    licence: str = ""
    reference: str = ""

    @property
    def structures(self) -> dict[str, int]:
        """The labels without the background."""
        return {name: value for name, value in self.labels.items() if value != 0}

    @property
    def classes(self) -> int:
        """K, the output channels a network needs: 1 (sigmoid) for a single structure, else one a label (softmax)."""
        return 1 if len(self.structures) == 1 else len(self.labels)

    @property
    def published(self) -> str:
        """The public dataset's name in papers, by the DOI of `reference`; "" of any other dataset."""
        return next((name for doi, name in _PUBLISHED.items() if doi in self.reference), "")

    def to_dict(self) -> dict[str, Any]:
        """As dataset.json holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any], *, source: str | Path = layout.DATASET_FILE) -> DatasetDescription:
        """From what dataset.json holds; unknown keys are kept out.

        Raises:
            EchoPlanError: a key is missing or wrong.
        """
        known = {item.name for item in fields(cls)}
        try:
            description = cls(**{key: value for key, value in content.items() if key in known})
            description._validate()
        except (TypeError, ValueError, AttributeError) as error:
            raise EchoPlanError(f"dataset.json is not as it should be: {error}", file=source) from error
        return description

    def _validate(self) -> None:
        values = list(self.labels.values())
        if self.labels.get("background") != 0:
            raise ValueError('"labels" needs "background": 0')
        if sorted(values) != list(range(len(values))) or any(type(value) is not int for value in values):
            raise ValueError(f'the values of "labels" must be 0, 1, 2, ... without gaps, not {values}')
        if len(values) < 2:
            raise ValueError('"labels" names no structure besides the background')
        if self.target not in self.structures:
            raise ValueError(f'"target" is {self.target!r}, which "labels" does not name')
        if self.ignore_label != IGNORE:
            raise ValueError(f'"ignore_label" must be {IGNORE}')


@dataclass(frozen=True)
class Case:
    """What is known of one clip: a row of cases.csv. Frames count from 0; what is unknown is None or empty.

    Attributes:
        case: the clip's unique name.
        patient: clips of one patient never part between folds, and pair up for biplane volumes.
        image, label: paths relative to the dataset's folder.
        view: "A2C", "A4C" or any other word.
        split: "train", "val", "test"; empty counts as train.
        ed_frame, es_frame: end-diastole and end-systole.
        labelled_frames: the frames with labels; None where nobody wrote it down (the label file then says).
        frame_time_ms, spacing_row_mm, spacing_col_mm: set where the file does not know or is wrong; they win over it.
        ef_percent, edv_ml, esv_ml: the reference measurements.
        quality: the dataset's own word for the image quality.
        exam: tells a patient's exams apart; clips of two of them are never measured together. Empty is unknown.
        scale_note, reference_note: why a spacing or frame time, or a reference, counts as unknown; no columns.
    """

    case: str
    patient: str = ""
    image: str = ""
    label: str | None = None
    view: str = ""
    split: str = ""
    ed_frame: int | None = None
    es_frame: int | None = None
    labelled_frames: tuple[int, ...] | None = None
    frame_time_ms: float | None = None
    spacing_row_mm: float | None = None
    spacing_col_mm: float | None = None
    ef_percent: float | None = None
    edv_ml: float | None = None
    esv_ml: float | None = None
    quality: str = ""
    exam: str = ""
    scale_note: str = ""
    reference_note: str = ""

    @property
    def spacing_mm(self) -> tuple[float, float] | None:
        """(row, column) in mm, or None where cases.csv does not give both."""
        if self.spacing_row_mm is None or self.spacing_col_mm is None:
            return None
        return self.spacing_row_mm, self.spacing_col_mm

    def with_header(self, header: Clip | ClipInfo) -> Case:
        """The case with its clip's spacing and frame time, in which cases.csv has had its say when it was read."""
        exam = self.exam or header.exam
        return replace(self._scaled(header.spacing_mm, header.frame_time_ms, header.scale_note), exam=exam)

    def plausible(self) -> Case:
        """The case without a spacing or a frame time that no echocardiogram has; then `scale_note` says so."""
        spacing, time, note = plausible_scale(self.spacing_mm, self.frame_time_ms)
        return self._scaled(spacing, time, note) if note else self

    def _scaled(self, spacing_mm: tuple[float, float] | None, frame_time_ms: float | None, note: str) -> Case:
        row, column = spacing_mm or (None, None)
        return replace(self, spacing_row_mm=row, spacing_col_mm=column, frame_time_ms=frame_time_ms, scale_note=note)

    def without_phases(self) -> Case:
        """The case as if nobody had named its end-diastole and end-systole, so that they are found."""
        return replace(self, ed_frame=None, es_frame=None)

    def wrong_phases(self, frames: int) -> list[str]:
        """What a clip of so many frames cannot have as end-diastole and end-systole."""
        return [
            f"{name} is {frame}, but the clip has {frames} frames (counted from 0)"
            for name, frame in (("ed_frame", self.ed_frame), ("es_frame", self.es_frame))
            if frame is not None and not 0 <= frame < frames
        ]

    def with_phases_in(self, frames: int) -> tuple[Case, str]:
        """The case with the phases that a clip of so many frames can have, and a note on those that are let go."""
        wrong = self.wrong_phases(frames)
        if wrong:
            ed, es = (frame if frame in range(frames) else None for frame in (self.ed_frame, self.es_frame))
            return replace(self, ed_frame=ed, es_frame=es), f"not used: {', '.join(wrong)}"
        if self.ed_frame is not None and self.ed_frame == self.es_frame and frames > 1:
            return self.without_phases(), f"not used: ed_frame and es_frame are both {self.ed_frame}"
        return self, ""

    def to_row(self) -> dict[str, Any]:
        """Column of cases.csv -> value; `exam` only where it is known."""
        row = {name: getattr(self, name) for name in _FIELDS}
        return row | {EXAM: self.exam} if self.exam else row


_FIELDS = tuple(item.name for item in fields(Case) if item.name in COLUMNS)
_FRAMES = ("ed_frame", "es_frame")
_NUMBERS = (*POSITIVE, "ef_percent", "edv_ml", "esv_ml")


@dataclass(frozen=True)
class EchoDataset:
    """A raw dataset on disk."""

    folder: Path
    description: DatasetDescription
    cases: tuple[Case, ...]

    @classmethod
    def read(cls, folder: str | Path) -> EchoDataset:
        """Read and validate dataset.json and cases.csv.

        Raises:
            EchoPlanError: a file is missing or wrong; the message names the row.
        """
        folder = Path(folder)
        description_file = folder / layout.DATASET_FILE
        if not description_file.is_file():
            raise EchoPlanError(
                "dataset.json is missing",
                file=folder,
                remedy="run the conversion again if it was stopped, or write the file as docs/formats.md shows",
            )
        description = DatasetDescription.from_dict(read_json(description_file), source=description_file)
        return cls(folder, description, read_cases(folder / layout.CASES_FILE))

    def write(self) -> None:
        """Write cases.csv and dataset.json into the folder; with dataset.json, written last, the dataset is there."""
        write_cases(self.folder / layout.CASES_FILE, self.cases)
        write_json(self.folder / layout.DATASET_FILE, self.description.to_dict())

    def training_cases(self) -> tuple[Case, ...]:
        """The cases that cross-validation uses: all but the test split."""
        return tuple(case for case in self.cases if case.split != "test")

    def test_cases(self) -> tuple[Case, ...]:
        """The cases of the test split."""
        return tuple(case for case in self.cases if case.split == "test")

    def case(self, name: str) -> Case:
        """The case called `name`; EchoPlanError if there is none."""
        for case in self.cases:
            if case.case == name:
                return case
        raise EchoPlanError(f"there is no case {name!r}", file=self.folder / layout.CASES_FILE)

    def load_clip(self, case: Case) -> Clip:
        """The case's clip, with what cases.csv knows better than the file.

        Raises:
            EchoPlanError: it cannot be read, or cases.csv names an ED or ES that it does not have.
        """
        path = self.folder / case.image
        clip = read_clip(path, spacing_mm=case.spacing_mm, frame_time_ms=case.frame_time_ms)
        if wrong := case.wrong_phases(len(clip)):
            raise EchoPlanError(
                "; ".join(wrong), file=path, remedy=f"mend the row of {case.case} in {layout.CASES_FILE}"
            )
        return clip

    def load_mask(self, case: Case, *, clip: Clip | None = None, notes: list[str] | None = None) -> np.ndarray:
        """The case's labels, (T, H, W) uint8; frames that nobody labelled, or that cases.csv leaves out, hold 255.

        Labels may lie on the clip's grid, or on that of the file's own larger image; then they are cut like the clip.

        Args:
            case: the row of cases.csv.
            clip: its clip, whose grid the labels must lie on.
            notes: what a user should know is added; without it, it is logged.

        Raises:
            EchoPlanError: there is no label file, a listed frame lies outside the clip, or the labels fail a check of
                `echoplan.masks`, as where they hold a value that dataset.json does not name.
        """
        if case.label is None:
            raise EchoPlanError(f"case {case.case} has no label file", file=self.folder / layout.CASES_FILE)
        path, values = self.folder / case.label, self.description.labels.values()
        mask = load_mask(path, clip=clip, labels=values, named_in=layout.DATASET_FILE)
        if case.labelled_frames is None:
            mask, note = without_empty_rest(mask)
            if note and notes is None:
                logger.info("%s: %s", case.case, note)
            elif note and notes is not None:
                notes.append(note)
            return mask
        outside = [frame for frame in case.labelled_frames if frame >= len(mask)]
        if outside:
            raise EchoPlanError(
                f"labelled_frames of {case.case} names {outside}, but the clip has {len(mask)} frames (counted from 0)",
                file=self.folder / layout.CASES_FILE,
            )
        mask[np.setdiff1d(np.arange(len(mask)), case.labelled_frames)] = IGNORE
        return mask


def read_cases(path: Path) -> tuple[Case, ...]:
    """Read cases.csv; also used for a cases.csv that lies beside clips to predict.

    Raises:
        EchoPlanError: the file is missing, lacks a required column, or a row is wrong.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows = [(reader.line_num, row) for row in reader]  # blank lines count, as in an editor
            header = [name or "" for name in reader.fieldnames or ()]
    except FileNotFoundError as error:
        raise EchoPlanError("cases.csv is missing", file=path, remedy="convert the dataset again") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise EchoPlanError(f"this is not a CSV file in UTF-8: {error}", file=path, remedy="save it as such") from error
    columns = columns_of(header, path)
    cases = tuple(_parse_row(row, columns, line, path) for line, row in rows)
    check_cases((case.case for case in cases), file=path)
    warn_of_views([case.view for case in cases if case.view and not is_known(case.view)], path)
    if notes := [f"{case.case}: {case.reference_note}" for case in cases if case.reference_note]:
        logger.warning("%s: references of %d rows count as unknown: %s", path, len(notes), few(notes))
    return cases


def write_cases(path: Path, cases: tuple[Case, ...]) -> None:
    """Write cases.csv."""
    rows = [case.to_row() for case in cases]
    for row in rows:
        if row["labelled_frames"] is not None:
            row["labelled_frames"] = ";".join(map(str, row["labelled_frames"]))
    write_csv(path, rows, (*COLUMNS, EXAM) if any(case.exam for case in cases) else COLUMNS)


def _parse_row(row: Mapping[str, str | None], columns: Mapping[str, str], line: int, path: Path) -> Case:
    text = {name: from_cell((row.get(columns.get(name, "")) or "").strip()) for name in (*COLUMNS, EXAM)}
    words = ("case", "patient", "image", "view", "split", "quality", EXAM)
    values: dict[str, Any] = {name: text[name] for name in words}
    values["label"] = text["label"] or None
    try:
        for name in ("case", "patient", "image"):
            if not text[name]:
                raise ValueError(f"{name} is empty")
        if wrong := wrong_name(text["case"]):
            raise ValueError(wrong)
        for name in ("image", "label"):
            if wrong := wrong_path(text[name]):
                raise ValueError(f"{name} {wrong}")
        for name in ("patient", "view", "quality"):
            if printable(text[name]) != text[name]:
                raise ValueError(f"{name} is {text[name]!r}, with control characters in it")
        if text["split"] not in SPLITS:
            raise ValueError(f"split is {text['split']!r}; it must be train, val, test or empty")
        values["view"] = standard_view(text["view"])
        for name in _FRAMES:
            values[name] = frame_of(text[name], name)
        for name in _NUMBERS:
            values[name] = number_of(text[name], name)
        if (values["spacing_row_mm"] is None) != (values["spacing_col_mm"] is None):
            raise ValueError("only one of spacing_row_mm and spacing_col_mm is given; give both or none")
        if text["labelled_frames"]:
            frames = [frame_of(part, "labelled_frames") for part in text["labelled_frames"].split(";")]
            values["labelled_frames"] = tuple(frame for frame in frames if frame is not None)
    except ValueError as error:
        raise EchoPlanError(f"row {line} ({text['case'][:40]}): {error}", file=path, remedy="mend this row") from error
    impossible = impossible_references(values["ef_percent"], values["edv_ml"], values["esv_ml"])
    return Case(**(values | dict.fromkeys(impossible)), reference_note="; ".join(dict.fromkeys(impossible.values())))
