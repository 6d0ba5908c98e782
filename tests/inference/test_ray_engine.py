"""Prediction on a Ray cluster of two nodes on this machine; and a worker's own part, without any cluster."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from echoplan import cluster_map
from echoplan.cluster import connected
from echoplan.cluster_map import ATTEMPTS, ClusterMap
from echoplan.errors import EchoPlanError
from echoplan.imageio import write_clip
from echoplan.inference import EchoPredictor, find_inputs, predict_folder
from echoplan.inference.ray_engine import ClipWorker, RayEngine
from echoplan.parallel_map import run_cases

from .conftest import make_heart

ROOT = Path(__file__).parents[2]
PATIENCE = 500  # seconds; for machines that do much else
IN_FLIGHT = 3  # clips of one actor
MANY = 200
MINUTE = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d")
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install '.[ray]'")

FALLS, RAISES = 251, 252
# A network that notes which clip it sees, takes its time, and breaks on clips with a mark in their corner.
MARKED = f"""
import os, time
from pathlib import Path
FALLS, RAISES = {FALLS}, {RAISES}
"""
MARKED += """


class MarkedTrainer(BrightTrainer):
    def build_network(self, *, size, classes, pretrained=False):
        return Marked(classes)


class Marked(Bright):
    def forward(self, clip):
        mark, number = (int(round(float(clip[0, 0, 0, 0, column]) * 255)) for column in (0, 1))
        with open(Path(__file__).with_name("seen"), "a") as seen:
            seen.write(f"{mark}-{number}\\n")
        time.sleep(0.03)
        if mark == FALLS:
            os.kill(os.getpid(), 9)
        if mark == RAISES:
            raise RuntimeError("the network broke")
        return super().forward(clip)
"""


@pytest.fixture
def model(folders, make_model, tmp_path):
    """A model folder with the network above and postprocessing of its own."""
    with open(tmp_path / "trainers.py", "a") as stream:
        stream.write(MARKED)
    made = make_model(folders.results, trainer="MarkedTrainer", folds=(0,))
    (made / "postprocessing.json").write_text('{"steps": ["largest_component"]}')
    return made


@pytest.fixture
def make_clips(tmp_path):
    """`make_clips(count, {number: mark})`: clips named 00, 01, ... of patients of their own."""

    def make(count: int, marks: dict[int, int] | None = None) -> Path:
        for number in range(count):
            clip = make_heart(shape=(64, 64), frames=8, dimmer=number).clip
            clip.frames[:, 0, :2] = (marks or {}).get(number, 0), number
            write_clip(tmp_path / "in" / f"{number:02}.nii.gz", clip)
        return tmp_path / "in"

    return make


def models(folder: Path) -> dict:
    return {"folders": [(folder, None)], "trust_code": True}


def plainly(folder: Path) -> EchoPredictor:
    return EchoPredictor.from_model_folders(**models(folder), device="cpu")


def seen(tmp_path: Path) -> Counter[str]:
    """How often each clip reached the network: "<mark>-<number>"."""
    file = tmp_path / "seen"
    return Counter(file.read_text().split() if file.exists() else ())


def results(out: Path) -> dict[str, bytes]:
    """Everything but the record of the command's own words, and of pages the minute they were made in.

    Hidden are the halves of files that processes were killed over; nobody reads them.
    """
    files = (file for file in out.rglob("[!.]*") if file.is_file() and file.name != "prediction_args.json")
    return {str(file.relative_to(out)): MINUTE.sub(b"", file.read_bytes()) for file in files}


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


# A worker alone -----------------------------------------------------------------------------------------------------


@pytest.fixture
def make_worker(tmp_path, model):
    """`make_worker(device)`: a worker as the cluster makes it, in this process."""

    def make(device: str = "cpu") -> ClipWorker:
        (tmp_path / "out").mkdir(exist_ok=True)
        worker = ClipWorker(models(model), "cpu", tmp_path / "out", False)
        worker.device = device
        return worker

    return make


def test_a_worker_predicts_clips_and_says_why_it_cannot(tmp_path, make_clips, make_worker):
    source = make_clips(3, {1: RAISES})
    (source / "03.nii.gz").write_bytes(b"\x1f\x8bno NIfTI")
    results = run_cases(make_worker(), {item.name: (item,) for item in find_inputs(source)})
    assert list(results.done) == ["00", "02"] and list(results.failures) == ["01", "03"]
    assert results.failures["01"] == "RuntimeError: the network broke" and "NIfTI" in results.failures["03"]
    assert seen(tmp_path) == {"0-0": 1, f"{RAISES}-1": 1, "0-2": 1}


def test_a_clip_is_decoded_while_the_network_works_on_another(tmp_path, make_clips, make_worker, monkeypatch):
    worker, decoding = make_worker(), threading.Semaphore(0)
    prepare = worker.predictor.prepare

    def prepared(clip):
        decoding.release()
        return prepare(clip)

    monkeypatch.setattr(type(worker.predictor), "prepare", lambda self, clip: prepared(clip))
    clips = find_inputs(make_clips(2))
    with worker.network:  # the network is at work
        threads = [threading.Thread(target=worker, args=(clip,)) for clip in clips]
        for thread in threads:
            thread.start()
        assert all(decoding.acquire(timeout=PATIENCE) for _ in clips) and seen(tmp_path) == {}
    for thread in threads:
        thread.join(PATIENCE)
    assert seen(tmp_path) == {"0-0": 1, "0-1": 1}


def test_a_worker_whose_gpu_is_lost_ends(tmp_path, make_clips, make_worker, monkeypatch):
    (clip,) = find_inputs(make_clips(1, {0: RAISES}))
    worker = make_worker("cuda")
    monkeypatch.setattr("torch.cuda.synchronize", lambda: (_ for _ in ()).throw(RuntimeError("CUDA error")))
    monkeypatch.setattr("os._exit", lambda status: (_ for _ in ()).throw(SystemExit(status)))
    with pytest.raises(SystemExit):
        worker(clip)
    assert seen(tmp_path) == {f"{RAISES}-0": 1}


# The cluster --------------------------------------------------------------------------------------------------------


def start_nodes(folder: str, tries: int = 3) -> Any:
    """The two nodes; Ray gives a node 30 s to start, which a machine that does much else may not keep."""
    from ray.cluster_utils import Cluster as LocalNodes

    Path("/tmp/ray").mkdir(exist_ok=True)  # where Ray notes the head's address, and which it takes to be there
    found = LocalNodes()
    common = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    try:
        found.add_node(**common, num_gpus=1, include_dashboard=False, temp_dir=folder)
        found.worker = found.add_node(**common)
    except Exception:
        found.shutdown()
        if tries == 1:
            raise
        return start_nodes(folder, tries - 1)
    return found


@pytest.fixture(scope="module")
def nodes():
    """A head with one core and one (pretended) GPU, and a second node with one core."""
    patch = pytest.MonkeyPatch()
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",  # workers give way to everything else on the machine otherwise
        "RAY_prestart_worker_first_driver": "0", "RAY_enable_worker_prestart": "0",
    }.items():  # fmt: skip
        patch.setenv(name, value)
    patch.delenv("RAY_ADDRESS", raising=False)
    import ray

    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        found = start_nodes(folder)
        try:
            ray.init(found.address, log_to_driver=False, logging_level=logging.ERROR)
            yield found
        finally:
            ray.shutdown()
            found.shutdown()
            patch.undo()


@needs_ray
def test_results_are_those_of_the_plain_run_past_a_clip_that_kills_its_worker(tmp_path, nodes, model, make_clips):
    source = make_clips(12, {5: FALLS, 7: RAISES})
    (source / "12.nii.gz").write_bytes(b"\x1f\x8bno NIfTI")
    run = predict_folder(source, tmp_path / "ray", plainly(model), engine=RayEngine(models(model), device="cpu"))
    assert run.predicted == [f"{number:02}" for number in range(12) if number not in (5, 7)]
    assert list(run.failures) == ["05", "07", "12"] and "died in each of 3 attempts" in run.failures["05"]
    assert run.failures["07"] == "RuntimeError: the network broke"
    assert seen(tmp_path)[f"{FALLS}-5"] == seen(tmp_path)[f"{RAISES}-7"] == ATTEMPTS
    assert {row.patient: row.failure for row in run.rows}["05"].startswith("05: its worker died")
    assert list((tmp_path / "ray").glob(".run-*")) == []
    for number in (5, 7):
        (source / f"{number:02}.nii.gz").unlink()
    plain = predict_folder(source, tmp_path / "plain", plainly(model))
    merged = predict_folder(source, tmp_path / "ray", plainly(model), continue_prediction=True)
    assert merged.kept == plain.predicted and merged.rows == plain.rows
    assert results(tmp_path / "ray") == results(tmp_path / "plain")


@needs_ray
def test_neither_a_killed_command_nor_a_killed_node_loses_anything(tmp_path, nodes, folders, model, make_clips):
    source, out = make_clips(MANY), tmp_path / "out"
    words = ["-i", source, "-o", out, "-m", model, "--trust_code", "--device", "cpu", "-np", 0, "--engine", "ray"]
    command = [Path(sys.executable).parent / "echoplan_predict", *words, "--address", nodes.address]
    said = tmp_path / "said"
    with open(said, "w") as stream:
        process = subprocess.Popen(list(map(str, command)), stdout=stream, stderr=stream)
    try:
        wait_until(lambda: process.poll() is not None or len(list(out.glob("[!.]*.nii.gz"))) > MANY // 10)
        assert process.poll() is None, said.read_text()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
    wait_until(nodes_are_free)
    kept = {file.name: file.stat().st_mtime_ns for file in out.glob("[!.]*.nii.gz")}
    assert MANY // 10 < len(kept) < MANY * 3 // 4

    def kill_a_node() -> None:
        wait_until(lambda: len(list(out.glob("[!.]*.nii.gz"))) > len(kept) + MANY // 10)
        nodes.remove_node(nodes.worker, allow_graceful=False)

    killer = threading.Thread(target=kill_a_node)
    killer.start()
    engine = RayEngine(models(model), device="cpu")
    run = predict_folder(source, out, plainly(model), continue_prediction=True, engine=engine)
    killer.join(PATIENCE)
    assert run.failures == {} and len(run.kept) == len(kept) and len(run.predicted) == MANY - len(kept)
    assert kept.items() <= {file.name: file.stat().st_mtime_ns for file in out.glob("[!.]*.nii.gz")}.items()
    twice = seen(tmp_path)
    assert sum(twice.values()) - MANY <= 2 * IN_FLIGHT + IN_FLIGHT  # both actors of the command, and that of the node
    predict_folder(source, tmp_path / "plain", plainly(model))
    assert results(out) == results(tmp_path / "plain")


def nodes_are_free() -> bool:
    import ray

    return ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]


@needs_ray
def test_what_is_waited_for_is_said_and_what_cannot_come_is_an_error(tmp_path, nodes, monkeypatch, caplog):
    from ray.util.placement_group import placement_group, remove_placement_group

    monkeypatch.setattr(cluster_map, "_FIRST_WORD_SECONDS", 0.5)
    taken = placement_group([{"GPU": 1}])
    assert taken.wait(PATIENCE)
    with connected() as cluster, caplog.at_level(logging.WARNING):
        run = ClusterMap(cluster, {"GPU": 1.0, "CPU": 1.0}, tmp_path, workers=1)
        found = []
        waiting = threading.Thread(target=lambda: found.append(run(abs, {"a": (-1,)})))
        waiting.start()
        wait_until(lambda: caplog.messages)
        assert caplog.messages[0].startswith("1 wait for room or start; each takes 1 GPU and 1 CPU: ")
        assert "1 GPU, 0 free" in caplog.messages[0] and waiting.is_alive()
        remove_placement_group(taken)
        waiting.join(PATIENCE)
        assert found[0].done == {"a": 1}
        with pytest.raises(EchoPlanError, match=r"a worker takes 2 GPUs, which no node has: .* with 1 GPU"):
            replace(run, need={"GPU": 2.0})(abs, {"a": (-1,)})
