"""Several raw datasets as one: the names of its cases, the labels they share. Nothing of it is written to raw/.

A joint is called by its datasets' names, joined by "+". Its cases and patients bear their dataset's name in front, so
that patient0001 of the one is never taken for patient0001 of the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from echoplan.dataset import Case, DatasetDescription, EchoDataset
from echoplan.errors import EchoPlanError
from echoplan.labels import IGNORE
from echoplan.paths import Folders, is_joint, joint_case, member_of


@dataclass(frozen=True)
class Member:
    """A raw dataset, alone or as part of a joint.

    Attributes:
        name: the dataset's name, as it leads the names of a joint's cases; "" where it is alone.
        dataset: what is on disk.
        labels: the joint's, structure -> value; None where it is alone.
    """

    name: str
    dataset: EchoDataset
    labels: Mapping[str, int] | None = None

    def case_name(self, case: str) -> str:
        """What one of its cases, or patients, is called here."""
        return joint_case(self.name, case) if self.name else case

    def cases(self) -> tuple[Case, ...]:
        """All its cases, as they are called here."""
        if not self.name:
            return self.dataset.cases
        return tuple(
            replace(case, case=self.case_name(case.case), patient=self.case_name(case.patient))
            for case in self.dataset.cases
        )

    @property
    def target(self) -> int:
        """The value of the structure that is measured, in labels as they are used here."""
        description = self.dataset.description
        return (self.labels or description.labels)[description.target]

    def relabelled(self, mask: np.ndarray) -> np.ndarray:
        """A mask of this dataset, uint8, with the joint's values; structures not shared by all are background."""
        if self.labels is None:
            return mask
        values = np.zeros(256, np.uint8)
        values[IGNORE] = IGNORE
        for name, value in self.dataset.description.structures.items():
            values[value] = self.labels.get(name, 0)
        return values[mask]


@dataclass(frozen=True)
class JointDataset:
    """Several raw datasets as one.

    Attributes:
        name: their names joined by "+", in order.
        description: the labels they share.
        members: they, in the order of their names.
    """

    name: str
    description: DatasetDescription
    members: tuple[Member, ...]

    @classmethod
    def read(cls, folders: Folders, name: str) -> JointDataset:
        """Read the datasets that `name` joins by "+", each by its name, id or folder name.

        Raises:
            EchoPlanError: one is missing, or they do not share the structure that is measured.
        """
        name = folders.joint_name(name)
        datasets = {
            own: EchoDataset.read(folder)
            for own, folder in zip(name.split("+"), folders.find_members(name), strict=True)
        }
        for own in datasets:
            if member_of(own, datasets):
                raise EchoPlanError(
                    f"the cases of {own} and {member_of(own, datasets)} could not be told apart in a joint",
                    remedy="rename the folder of one of them",
                )
        labels = shared_labels({own: dataset.description for own, dataset in datasets.items()})
        first = next(iter(datasets.values())).description
        terms = {
            item: "; ".join(
                f"{own}: {text}" for own, each in datasets.items() if (text := getattr(each.description, item))
            )
            for item in ("licence", "reference")
        }
        description = DatasetDescription(name, labels, target=first.target, **terms)
        return cls(name, description, tuple(Member(own, dataset, labels) for own, dataset in datasets.items()))

    @property
    def left_out(self) -> dict[str, list[str]]:
        """Dataset -> its structures that not all have, which are background here."""
        left = {
            member.name: [name for name in member.dataset.description.structures if name not in self.description.labels]
            for member in self.members
        }
        return {name: structures for name, structures in left.items() if structures}

    @property
    def cases(self) -> tuple[Case, ...]:
        """All cases of all members; their images lie in the members' own folders."""
        return tuple(case for member in self.members for case in member.cases())


def read_dataset(folders: Folders, name: str) -> EchoDataset | JointDataset:
    """The raw dataset of that name, or the joint of several; EchoPlanError if there is none."""
    return JointDataset.read(folders, name) if is_joint(name) else EchoDataset.read(folders.find_raw(name))


def members_of(dataset: EchoDataset | JointDataset) -> tuple[Member, ...]:
    """A joint's members, or the one dataset."""
    return dataset.members if isinstance(dataset, JointDataset) else (Member("", dataset),)


def home_name(dataset: EchoDataset | JointDataset) -> str:
    """What its folders in preprocessed/ and results/ are called."""
    return dataset.name if isinstance(dataset, JointDataset) else dataset.folder.name


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
