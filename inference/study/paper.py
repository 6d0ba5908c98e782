"""What a paper printed: its tables, and of each row the network that is trained to stand beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from echoplan.errors import EchoPlanError

from ...evaluation.ventricle.volumes import VolumeRule

CAMUS, ECHONET = "CAMUS", "EchoNet-Dynamic"
OVERALL, ED, ES = "all", "end_diastole", "end_systole"
ED_AND_ES = "ed_es"  # the frames of both phases together
EFFICIENCY = ("parameters", "learning", "gmac", "frames_per_second")
# What of EF a table prints: Pearson's r in percent, the signed mean and the SD of the errors in points.
EF_FIGURES = ("ef_r", "ef_bias", "ef_sd")


@dataclass(frozen=True)
class PublishedRow:
    """A row of a table.

    Attributes:
        name: as the paper has it.
        trainer: as `-tr` names it.
        published: figure -> what was printed.
        sd: figure -> its SD over frames, where it was printed.
        settings: "key=value" in which the row differs from the trainer.
        untrained: whether the network is as its weights were published.
        boxes: whether the network is given the labels' boxes when it is tested, as the paper did.
        tested_on: public dataset; "" is the table's own.
        view: only its clips; "" for all.
        phase: which of the judged frames count.
    """

    name: str
    trainer: str
    published: Mapping[str, float]
    settings: tuple[str, ...] = ()
    untrained: bool = False
    boxes: bool = False
    tested_on: str = ""
    view: str = ""
    phase: str = OVERALL
    sd: Mapping[str, float] = field(default_factory=dict)

    @property
    def tested(self) -> bool:
        """Whether it needs a network that has learned something; its size and speed do not."""
        return not self.published or bool(set(self.published) - set(EFFICIENCY))


@dataclass(frozen=True)
class PublishedTable:
    """A table, or the part of one that is of one dataset.

    Attributes:
        number: in the paper.
        title: what it is about.
        dataset: the public dataset that its networks are trained on.
        rows: of `PublishedRow`.
        note: what is unclear in print.
        in_pixels: whether its distances are in pixels of the network's grid, also where the spacing is known.
        ef_rule: by which EF is measured in the masks and in the references.
        empty_count: whether empty predictions count in distances (here with the image's diagonal).
    """

    number: str
    title: str
    dataset: str
    rows: tuple[PublishedRow, ...]
    note: str = ""
    in_pixels: bool = False
    empty_count: bool = True
    ef_rule: VolumeRule = "simpson"

    @property
    def figures(self) -> list[str]:
        """The figures of its columns."""
        return list(dict.fromkeys(name for row in self.rows for name in row.published))


@dataclass(frozen=True)
class Paper:
    """A paper whose tables `echoplan_reproduce` trains.

    Attributes:
        citation: authors, venue, year.
        tables: those that can be trained here.
        leaks: what in its protocol makes its figures better than those of an automatic method on unseen patients.
        missing: what of it cannot be had.
    """

    citation: str
    tables: tuple[PublishedTable, ...]
    leaks: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def chosen(self, dataset: str, numbers: tuple[str, ...]) -> list[PublishedTable]:
        """The tables of a dataset; of some numbers where they are named.

        Raises:
            EchoPlanError: there is none.
        """
        own = [table for table in self.tables if table.dataset == dataset]
        wanted = [table for table in own if not numbers or table.number in numbers]
        unknown = sorted(set(numbers) - {table.number for table in own})
        if unknown or not wanted:
            there = "; ".join(f"{table.number} of {table.dataset}" for table in self.tables) or "none"
            raise EchoPlanError(
                f"there is no table {', '.join(unknown)} of {dataset or 'this dataset'}" if unknown else
                f"none of the paper's tables is of {dataset or 'this dataset'}",
                remedy=f"its tables: {there}; a dataset is known by the DOI in its dataset.json",
            )  # fmt: skip
        return wanted
