"""What fits GPUs of four sizes. After a wanted change run with ECHOPLAN_REGENERATE=1 and read the diff."""

import json
import os
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from echoplan.dataset import DatasetDescription
from echoplan.experiment_planning import measure_memory, plan_experiment
from echoplan.experiment_planning.fingerprint import summarise
from echoplan.files import write_json
from echoplan.training.methods import method_registry

HERE = Path(__file__).parent
GOLDEN = HERE / "plans" / "gpu_sizes.json"
GPUS_GB = (8, 11, 24, 80)
# Of networks that differ in a setting alone one is pinned, and SAM at its own size.
VARIANTS = (
    "PKEchoNetR18Trainer", "PKEchoNetR34Trainer", "E3SAM2SmallTrainer", "SAM2Trainer", "MedSAMTrainer",
    "MedSAM1024Trainer",
)  # fmt: skip
TRAINERS = {
    name: method
    for name, method in method_registry().items()
    if type(method).__module__.startswith("echoplan.training.") and name not in VARIANTS
}


@cache
def measured_once(trainer, size, frames, classes):
    return measure_memory(trainer, size=size, frames=frames, classes=classes)


def measure(trainer, *, size, frames, classes):
    return measured_once(trainer, tuple(size), frames, classes)


@cache
def planned(name):
    """GPU in GB -> what the plan of a CAMUS-like dataset says for this trainer."""
    content = json.loads((HERE / "fingerprints" / "camus.json").read_text())
    fingerprint = {"dataset": content["dataset"], "cases": content["cases"], "summary": summarise(content["cases"])}
    description = DatasetDescription("camus", labels=content["labels"])
    plans = {}
    for gpu_gb in GPUS_GB:
        plan = plan_experiment(
            fingerprint,
            description,
            trainers={name: TRAINERS[name]},
            gpu_memory_gb=gpu_gb,
            measure=measure,
            check=None,
        )
        decided = plan.trainers[name].decisions
        plans[str(gpu_gb)] = {key: decided[key].value for key in ("batch_size", "frames", "size")}
        plans[str(gpu_gb)]["fits"] = decided["batch_size"].evidence["fits"]
    return plans


@pytest.mark.parametrize("name", TRAINERS)
def test_every_method_fits_as_it_did(name):
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
    if os.environ.get("ECHOPLAN_REGENERATE"):
        golden = {kept: golden[kept] for kept in golden if kept in TRAINERS} | {name: planned(name)}
        write_json(GOLDEN, golden)
    assert planned(name) == golden[name]


@pytest.mark.parametrize("name", TRAINERS)
def test_more_memory_never_gives_less(name):
    plans = [planned(name)[str(gpu_gb)] for gpu_gb in GPUS_GB]
    for small, large in pairwise(plans):
        assert small["batch_size"] <= large["batch_size"] and small["frames"] <= large["frames"]
        assert all(less <= more for less, more in zip(small["size"], large["size"], strict=True))
        assert small["fits"] <= large["fits"]
    assert plans[-1]["batch_size"] == TRAINERS[name].requirements.batch_size and plans[-1]["fits"]


def test_no_method_is_pinned_that_is_gone():
    assert set(json.loads(GOLDEN.read_text())) == set(TRAINERS)
