"""Every decision of a plan is obeyed: edited, it changes what a stage does. A new one has to name its edit here."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from echoplan.datasets.phantom.patient import PhantomSettings
from echoplan.datasets.phantom.write import make_phantom_dataset
from echoplan.experiment_planning import MemoryModel, extract_fingerprint, plan_experiment
from echoplan.experiment_planning.fingerprint import joint_fingerprint
from echoplan.files import plain, write_json
from echoplan.inference.ensemble import PredictorMember
from echoplan.multi_dataset import MultiDataset
from echoplan.paths import Folders
from echoplan.plans import Configuration, Decision, Plan, ResolvedPlan
from echoplan.preprocessing import ClipStore
from echoplan.preprocessing.dataset import preprocess_dataset
from echoplan.training.fold import FoldSetup
from echoplan.training.methods import Method
from echoplan.training.methods.unet import SpaceTimeUNetMethod, UNetMethod
from echoplan.training.model_folder import ModelFolder
from echoplan.training.recipe import MethodRequirements
from echoplan.training.trainer import Trainer

# Of each decision another value, and the stages in which it must be noticed, at least.
EDITS: dict[str, tuple[Any, set[str]]] = {
    "size": ([96, 64], {"store", "batches", "inference"}),
    "protocol": ("stretch", {"store", "batches", "inference"}),
    "crop": (True, {"store", "batches", "inference"}),
    "normalisation": ("unit", {"batches", "inference"}),
    "frames": (2, {"samples", "batches", "inference"}),
    "sampling": ("labelled_frames", {"samples", "batches"}),
    "frame_stride": (1, {"inference"}),
    "mirror_axes": ([], {"batches", "inference"}),
    "rotation_degrees": (0.0, {"batches"}),
    "batch_size": (3, {"batches"}),
    "learning_rate": (0.5, {"optimizer"}),
    "typical_clip": ({"height_px": 1, "width_px": 1, "sector_share": 0.01}, {"inference"}),
}
SETTINGS = {"epochs": 1, "base_features": 4, "augmentation": "light"}


class ClipMethod(SpaceTimeUNetMethod):
    """A small network of clips that takes the samples that the plan says."""

    requirements: ClassVar[MethodRequirements] = MethodRequirements(batch_size=2, learning_rate=1e-2, frames=4)
    samples = Method.samples


class FrameMethod(UNetMethod):
    """A small network of single frames."""

    requirements: ClassVar[MethodRequirements] = MethodRequirements(batch_size=2, learning_rate=1e-2)


METHODS = {method.name: method.with_settings(SETTINGS) for method in (ClipMethod(), FrameMethod())}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Two raw datasets: the clips of the second are cropped, those of the first are not."""
    root = tmp_path_factory.mktemp("decisions")
    for number, (name, size) in enumerate((("A", (72, 96)), ("B", (64, 64))), start=1):
        settings = PhantomSettings(size=size, views=("A4C",), frames=9)
        make_phantom_dataset(root / f"raw/Dataset{number:03d}_{name}", patients=2, labels="ed_es", settings=settings)
    return Folders(root / "raw", root / "preprocessed", root / "results")


@pytest.fixture(scope="module")
def dataset(folders: Folders) -> MultiDataset:
    return MultiDataset.read(folders, "A+B")


@pytest.fixture(scope="module")
def plan(dataset: MultiDataset) -> Plan:
    fingerprints = {source.name: extract_fingerprint(source.raw) for source in dataset.sources}
    return plan_experiment(
        joint_fingerprint(dataset, fingerprints),
        dataset.description,
        trainers=METHODS,
        gpu_memory_gb=8.0,
        size=(64, 64),
        measure=lambda method, **_: MemoryModel(0.1, 0.01, "mixed"),
        check=None,
    )


def digest(*arrays: Any) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def effects(folders: Folders, dataset: MultiDataset, name: str, plan: ResolvedPlan, out: Path) -> dict[str, Any]:
    """What preprocessing, training and prediction make of a plan, stage by stage."""
    where = replace(folders, preprocessed=out / "preprocessed", results=out / "results")
    whole = Plan(dataset.name, "EchoPlans", {}, {name: Configuration(name, plan.decisions, None, plan.datasets)})
    assert preprocess_dataset(where, dataset, whole).failures == {}
    home = where.preprocessed / dataset.name
    store = ClipStore(home / plan.store)
    cases = tuple(store.cases())
    setup = FoldSetup(0, plan, dataset.description, store, cases, cases[:1], where.results / name, home)
    trainer = Trainer(METHODS[name], setup, seed=1)
    batches = [batch for epoch in range(2) for batch in trainer.training_batches.epoch(epoch)]
    model = ModelFolder(where.results / name, name, plan, dataset.description)
    member = PredictorMember(model, (0,), (trainer.network.eval(),))
    predicted = []
    with torch.inference_mode():
        for source in dataset.sources:
            clip = source.raw.load_clip(source.raw.cases[0])
            clip = replace(clip, frames=clip.frames[:5])
            prepared = member.prepare(clip, None)
            seen = member.as_seen([prepared])
            parts = member.probabilities(trainer.network, seen, [prepared], mirroring=True, autocast=False)
            predicted.append((prepared.geometry, digest(*(values for _, values in parts))))
    return {
        "store": digest(*(store.frames(case) for case in cases)),
        "samples": trainer.training_batches.samples,
        "batches": [digest(batch["clip"], batch["labels"]) for batch in batches],
        "optimizer": trainer.step.optimizer.param_groups[0]["lr"],
        "inference": predicted,
    }


def edited(plan: ResolvedPlan, decision: str, value: Any) -> ResolvedPlan:
    """The plan with another value of a decision, in every dataset that has its own."""
    changed = {decision: Decision(value, "edited by a test", kind="fixed")}
    if not any(decision in own for own in plan.datasets.values()):
        return replace(plan, decisions={**plan.decisions, **changed})
    return replace(plan, datasets={name: {**own, **changed} for name, own in plan.datasets.items()})


@pytest.fixture(scope="module")
def untouched(folders: Folders, dataset: MultiDataset, plan: Plan, tmp_path_factory: pytest.TempPathFactory):
    return {
        name: effects(folders, dataset, name, plan.resolve(name), tmp_path_factory.mktemp(name)) for name in METHODS
    }


@pytest.mark.parametrize("decision", EDITS)
def test_an_edited_decision_changes_what_is_done(
    folders: Folders, dataset: MultiDataset, plan: Plan, untouched: dict[str, Any], tmp_path: Path, decision: str
) -> None:
    value, stages = EDITS[decision]
    resolved = edited(plan.resolve("ClipMethod"), decision, value)
    after = effects(folders, dataset, "ClipMethod", resolved, tmp_path)
    changed = {stage for stage, done in after.items() if done != untouched["ClipMethod"][stage]}
    assert stages <= changed, f"nobody obeyed {decision} in {stages - changed}"


def test_a_network_of_single_frames_obeys_its_sampling_too(
    folders: Folders, dataset: MultiDataset, plan: Plan, untouched: dict[str, Any], tmp_path: Path
) -> None:
    resolved = edited(plan.resolve("FrameMethod"), "sampling", "uniform_ed_es")
    after = effects(folders, dataset, "FrameMethod", resolved, tmp_path)
    assert after["samples"] != untouched["FrameMethod"]["samples"]
    assert {len(sample.frames) for sample in untouched["FrameMethod"]["samples"]} == {1}


def test_there_is_no_decision_that_nobody_obeys(plan: Plan) -> None:
    """A decision added to the plan needs code that reads it, and an edit here that shows so."""
    groups = [*plan.configurations.values(), *plan.trainers.values()]
    decided = {name for group in groups for own in (group.decisions, *group.datasets.values()) for name in own}
    assert decided == set(EDITS)


def test_a_plan_of_an_earlier_echoplan_is_read(plan: Plan, tmp_path: Path) -> None:
    """What it decided and nobody ever obeyed has no effect."""
    content = plain(plan.to_dict())
    for name in ("supervision", "losses", "classes", "target_spacing_mm"):
        content["configurations"]["frame"]["decisions"][name] = {"value": "ed_es", "rule": "as it was decided once"}
    write_json(tmp_path / "EchoPlans.json", content)
    earlier, now = Plan.read(tmp_path / "EchoPlans.json").resolve("ClipMethod"), plan.resolve("ClipMethod")
    assert {name: earlier.decisions[name].value for name in now.decisions} == {
        name: plain(decision.value) for name, decision in now.decisions.items()
    }
