"""What one plan is of: a raw dataset, or several trained jointly. Nothing of it is written to raw/.

Several are called by their names, joined by "+". Their cases and patients then bear their dataset's name in front, so
that patient0001 of the one is never taken for patient0001 of the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from echoplan.dataset import Case, DatasetDescription, EchoDataset
from echoplan.errors import EchoPlanError
from echoplan.labels import IGNORE
from echoplan.paths import Folders, dataset_name

_OF = "__"  # between a dataset and its case


@dataclass(frozen=True)
class SourceDataset:
    """A raw dataset as a plan takes it.

    Attributes:
        name: the dataset's name.
        raw: what is on disk.
        labels: structure -> value as used here; structures that it does not name are background.
        alone: whether no other dataset is planned with it; else its name leads those of its cases.
    """

    name: str
    raw: EchoDataset
    labels: Mapping[str, int]
    alone: bool = True

    def case_name(self, case: str) -> str:
        """What one of its cases, or patients, is called here."""
        return case if self.alone else f"{self.name}{_OF}{case}"

    def cases(self) -> tuple[Case, ...]:
        """All its cases, as they are called here."""
        return tuple(
            replace(case, case=self.case_name(case.case), patient=self.case_name(case.patient))
            for case in self.raw.cases
        )

    @property
    def target(self) -> int:
        """The value of the structure that is measured, in labels as they are used here."""
        return self.labels[self.raw.description.target]

    def relabelled(self, mask: np.ndarray) -> np.ndarray:
        """A mask of this dataset, uint8, with the values used here."""
        if self.labels == self.raw.description.labels:
            return mask
        values = np.zeros(256, np.uint8)
        values[IGNORE] = IGNORE
        for name, value in self.raw.description.structures.items():
            values[value] = self.labels.get(name, 0)
        return values[mask]


@dataclass(frozen=True)
class MultiDataset:
    """The datasets that are planned, preprocessed and trained as one; most often a single one.

    Attributes:
        name: of its folders in preprocessed/ and results/: Dataset001_CAMUS, or CAMUS+EchoNet.
        description: the labels that all its datasets share.
        sources: the datasets, in the order of their names.
    """

    name: str
    description: DatasetDescription
    sources: tuple[SourceDataset, ...]

    @classmethod
    def of(cls, raw: EchoDataset) -> MultiDataset:
        """A single dataset."""
        source = SourceDataset(dataset_name(raw.folder), raw, raw.description.labels)
        return cls(raw.folder.name, raw.description, (source,))

    @classmethod
    def read(cls, folders: Folders, name: str) -> MultiDataset:
        """Read a dataset, or those that `name` joins by "+", each by its name, id or folder name.

        Raises:
            EchoPlanError: one is missing, or they do not share the structure that is measured.
        """
        raws = {dataset_name(folder): EchoDataset.read(folder) for folder in folders.find_sources(name)}
        if len(raws) == 1:
            return cls.of(*raws.values())
        for own in raws:
            for other in raws:
                if own.startswith(other + _OF):
                    raise EchoPlanError(
                        f"the cases of {own} and {other} could not be told apart when trained jointly",
                        remedy="rename the folder of one of them",
                    )
        description = shared_description(folders.name_of_several(name), raws)
        sources = (SourceDataset(own, raw, description.labels, alone=False) for own, raw in raws.items())
        return cls(description.name, description, tuple(sources))

    @property
    def several(self) -> bool:
        """Whether there is more than one dataset."""
        return len(self.sources) > 1

    @property
    def left_out(self) -> dict[str, list[str]]:
        """Dataset -> its structures that not all have, which are background here."""
        left = {
            source.name: [name for name in source.raw.description.structures if name not in self.description.labels]
            for source in self.sources
        }
        return {name: structures for name, structures in left.items() if structures}

    @property
    def cases(self) -> tuple[Case, ...]:
        """All cases; their images lie in the datasets' own folders."""
        return tuple(case for source in self.sources for case in source.cases())


def shared_description(name: str, raws: Mapping[str, EchoDataset]) -> DatasetDescription:
    """The description of several datasets together: what all of them label, and the terms of each.

    Raises:
        EchoPlanError: they do not measure the same structure.
    """
    descriptions = {own: raw.description for own, raw in raws.items()}
    return DatasetDescription(
        name,
        shared_labels(descriptions),
        target=next(iter(descriptions.values())).target,
        licence="; ".join(f"{own}: {each.licence}" for own, each in descriptions.items() if each.licence),
        reference="; ".join(f"{own}: {each.reference}" for own, each in descriptions.items() if each.reference),
    )


def shared_labels(descriptions: Mapping[str, DatasetDescription]) -> dict[str, int]:
    """The structures that all datasets name, with new values in the first one's order, and the background.

    Raises:
        EchoPlanError: they do not measure the same structure.
    """
    targets = {name: description.target for name, description in descriptions.items()}
    if len(set(targets.values())) > 1:
        told = ", ".join(f"{target} in {name}" for name, target in targets.items())
        raise EchoPlanError(
            f"these datasets measure different structures: {told}",
            remedy='call the same structure by the same name in "labels" and "target" of each dataset.json',
        )
    first = next(iter(descriptions.values()))
    shared = [name for name in first.structures if all(name in other.structures for other in descriptions.values())]
    return {"background": 0, **{name: value for value, name in enumerate(shared, start=1)}}
