"""Folds on a Ray cluster end as they do without one, whatever happens to their workers on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ErrorHandler, ProcessFailure

from echoplan.cluster import Cluster
from echoplan.dataset import DatasetDescription
from echoplan.errors import EchoPlanError, Terminated
from echoplan.files import read_json, write_json
from echoplan.parallel_map import CaseResults
from echoplan.paths import Folders
from echoplan.scripts import train
from echoplan.training import torchrun
from echoplan.training.checkpoint import load_checkpoint
from echoplan.training.fold import FoldSetup
from echoplan.training.metrics import read_metrics
from echoplan.training.ray_engine import FoldWatch, RayTraining, results_table, train_fold_on_node
from echoplan.training.train_fold import FoldJob, validation_dice

PATIENCE = 500  # seconds; for machines that do much else
SETTINGS = (
    "--epochs", "2", "--set", "iterations_per_epoch=3", "--set", "base_features=4", "--set", "batch_size=3",
    "--set", "augmentation=light", "-np", "0", "--device", "cpu", "--seed", "5",
)  # fmt: skip

# Each of these files changes the training of its method alone. It may be imported more than once.

# Reads, in its second step of the second epoch, from a file named after its fold how it is struck.
STRUCK = """
import os
import signal
from pathlib import Path

from echoplan.training.methods.unet import UNetMethod
from echoplan.training.trainer import Trainer


class Struck(UNetMethod):
    pass


def step_or_blow(self, batch, step=Trainer.train_step):
    blow = Path(__file__).with_name(f"blow{self.setup.fold}")
    if self.method.name == "Struck" and self.epoch == 1 and self.progress.batches == 1 and blow.exists():
        kind = blow.read_text()
        if kind == "raise":
            raise ValueError("struck")
        blow.unlink()
        os.kill(os.getpid(), signal.SIGTERM if kind == "terminate" else signal.SIGKILL)
    return step(self, batch)


Trainer.train_step = step_or_blow
"""

# Writes down what it trains with; its second process dies once, in the second epoch.
WRAPPED = """
import os
import signal
from pathlib import Path

from echoplan.training.methods.unet import UNetMethod
from echoplan.training.trainer import Trainer


class Wrapped(UNetMethod):
    pass


def step_or_blow(self, batch, step=Trainer.train_step):
    blow = Path(__file__).with_name("blow")
    if self.method.name == "Wrapped" and self.epoch == 1 and self.world.rank == 1 and blow.exists():
        blow.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch)


def end_and_tell(self, end=Trainer.on_train_end):
    end(self)
    if self.method.name == "Wrapped" and self.world.is_main:
        below = [name for name in ("RAY_RAYLET_PID", "TORCHELASTIC_RUN_ID") if name in os.environ]
        (self.setup.folder / "wrapper").write_text(" ".join([type(self.model).__name__, *below]))


Trainer.train_step, Trainer.on_train_end = step_or_blow, end_and_tell
"""

# Waits in its second epoch until it may go on.
HELD = """
import time
from pathlib import Path

from echoplan.training.methods.unet import UNetMethod
from echoplan.training.trainer import Trainer


class Held(UNetMethod):
    pass


def wait_and_step(self, batch, step=Trainer.train_step):
    while self.method.name == "Held" and self.epoch == 1 and not Path(__file__).with_name("go").exists():
        time.sleep(0.1)
    return step(self, batch)


Trainer.train_step = wait_and_step
"""


@pytest.fixture
def folds(frame_setup: FoldSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy dataset with two folds that can be trained, and one that cannot."""
    cases = [*frame_setup.train, *frame_setup.val]
    splits = [{"train": [other for other in cases if other != case], "val": [case]} for case in cases[:2]]
    splits.append({"train": cases, "val": ["p9_A4C"]})
    write_json(frame_setup.preprocessed / "splits_final.json", splits)
    (tmp_path / "struck.py").write_text(STRUCK)
    monkeypatch.setenv("echoplan_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("echoplan_results", str(tmp_path / "results"))
    return tmp_path


def model(results: Path, trainer: str) -> Path:
    return results / "Dataset001_Toy" / f"{trainer}__EchoPlans__frame"


def assert_the_same(mine: Path, theirs: Path) -> None:
    for name in ("final", "best", "latest"):
        first, second = (load_checkpoint(folder / f"checkpoint_{name}.pth")["network"] for folder in (mine, theirs))
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[key]) for key, value in first.items()), name
    histories = [
        [{name: value for name, value in entry.items() if "seconds" not in name} for entry in read_metrics(folder)]
        for folder in (mine, theirs)
    ]
    assert histories[0] == histories[1] and len(histories[0]) == 2
    assert read_json(mine / "validation" / "summary.json") == read_json(theirs / "validation" / "summary.json")


def test_folds_survive_their_workers_and_equal_the_plain_ones(
    two_nodes: None, folds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    struck = f"{folds / 'struck.py'}:Struck"
    monkeypatch.setenv("echoplan_results", str(folds / "plain"))
    for fold in ("0", "1"):
        assert train(["Toy", fold, "-tr", struck, *SETTINGS]) == 0
    monkeypatch.setenv("echoplan_results", str(folds / "results"))
    (folds / "blow0").write_text("kill")
    capsys.readouterr()
    monkeypatch.chdir(folds)
    command = ["Toy", "all", "-tr", "struck.py:Struck", *SETTINGS, "--engine", "ray", "--cpus_per_fold", "1"]
    assert train(command) == 1
    said = capsys.readouterr()
    assert "1 not done (training)" in said.err and "Struck fold 2: 1 of 5 cases are not preprocessed" in said.err
    rows = [line.split() for line in said.out.splitlines()[-5:]]
    assert [row[0] for row in rows] == ["fold", "0", "1", "2", "mean"]
    assert [row[1] for row in rows[3:]] == ["failed", "-"]
    for fold in (0, 1):
        mine, theirs = (model(folds / name, "Struck") / f"fold_{fold}" for name in ("results", "plain"))
        assert_the_same(mine, theirs)
        assert len(list(mine.glob("training_log_*.txt"))) == 2 - fold  # one was begun twice
        dice = validation_dice(mine / "validation" / "summary.json", DatasetDescription("Toy").target)
        assert rows[1 + fold][1] == f"{dice:.4f}"
    assert list((folds / "results" / "Dataset001_Toy").glob(".run-*")) == []

    # Once more: what is done is left; without --c nothing is touched.
    final = model(folds / "results", "Struck") / "fold_0" / "checkpoint_final.pth"
    before = final.stat().st_mtime_ns
    first = ["Toy", "0", *command[2:]]
    assert train([*first, "--c"]) == 0
    assert "1 of 1 done before" in capsys.readouterr().out
    assert train(first) == 1
    assert "Struck fold 0: fold 0 is trained already" in capsys.readouterr().err
    assert final.stat().st_mtime_ns == before


def test_a_worker_says_how_it_ended(folds: Path) -> None:
    settings = {"epochs": 2, "iterations_per_epoch": 3, "base_features": 4, "batch_size": 3, "augmentation": "light"}
    settings |= {"precision": "float32"}
    job = FoldJob("Toy", 0, f"{folds / 'struck.py'}:Struck", settings=settings, seed=5)

    def trained(results: str) -> float:
        return train_fold_on_node(job, Folders(folds / "raw", folds / "preprocessed", folds / results), "cpu")

    (folds / "blow0").write_text("raise")
    with pytest.raises(EchoPlanError, match=r"^ValueError: struck\n(.|\n)*Traceback"):
        trained("results")
    (folds / "blow0").write_text("terminate")
    with pytest.raises(Terminated):
        trained("results")
    dice = trained("results")  # as it is handed out again
    assert trained("plain") == dice
    assert_the_same(*(model(folds / name, "Struck") / "fold_0" for name in ("results", "plain")))


def test_a_fold_on_two_processes_within_a_task(
    two_nodes: None, folds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Ray task starts torchrun, whose processes train with DistributedDataParallel, and one is killed."""
    (folds / "wrapped.py").write_text(WRAPPED)
    command = ["Toy", "0", "-tr", f"{folds / 'wrapped.py'}:Wrapped", *SETTINGS, "--set", "precision=float32"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("echoplan_results", str(folds / "alone"))
    assert train(command) == 0
    (folds / "blow").touch()
    monkeypatch.setenv("echoplan_results", str(folds / "together"))
    assert train([*command, "--engine", "ray", "--processes_per_fold", "2", "--cpus_per_fold", "1"]) == 0
    assert "Wrapped" in capsys.readouterr().out
    alone, together = (model(folds / name, "Wrapped") / "fold_0" for name in ("alone", "together"))
    words = [(fold / "wrapper").read_text() for fold in (alone, together)]
    assert words == ["FrameUNet", "DistributedDataParallel RAY_RAYLET_PID TORCHELASTIC_RUN_ID"]
    assert not (folds / "blow").exists() and len(list(together.glob("training_log_*.txt"))) == 2
    for mine, theirs in zip(read_metrics(together), read_metrics(alone), strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
        assert mine["val_dice"] == pytest.approx(theirs["val_dice"], abs=1e-4)
    assert len(load_checkpoint(together / "checkpoint_latest.pth")["random"]) == 2  # two processes there were


@pytest.mark.timeout(2 * PATIENCE + 120)
def test_a_fold_outlives_its_node(folds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node that trains is lost; the fold waits for another one and goes on there."""
    pytest.importorskip("ray", reason="needs the extra: pip install '.[ray]'")
    from ray.cluster_utils import Cluster as LocalCluster

    (folds / "held.py").write_text(HELD)
    words = ["Toy", "0", "-tr", f"{folds / 'held.py'}:Held", *SETTINGS]
    command = [str(Path(sys.executable).parent / "echoplan_train"), *words, "--engine", "ray", "--cpus_per_fold", "1"]
    fold, said = model(folds / "results", "Held") / "fold_0", folds / "said"
    small = {"object_store_memory": 80 * 2**20}
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    nodes = LocalCluster(initialize_head=True, head_node_args={**small, "num_cpus": 0, "include_dashboard": False})
    try:
        lost = nodes.add_node(**small, num_cpus=1)
        with open(said, "w") as stream:
            process = subprocess.Popen([*command, "--address", nodes.address], stdout=stream, stderr=stream)
        try:
            deadline = time.monotonic() + PATIENCE
            while not (fold / "checkpoint_latest.pth").exists():
                assert time.monotonic() < deadline and process.poll() is None, said.read_text()
                time.sleep(0.1)
            nodes.remove_node(lost, allow_graceful=False)
            nodes.add_node(**small, num_cpus=1)
            (folds / "go").touch()
            assert process.wait(PATIENCE) == 0, said.read_text()
        finally:
            process.kill()
    finally:
        nodes.shutdown()
    assert "Held fold 0 is begun again: " in said.read_text()
    assert len(list(fold.glob("training_log_*.txt"))) == 2
    monkeypatch.setenv("echoplan_results", str(folds / "plain"))
    assert train(words) == 0
    assert_the_same(fold, model(folds / "plain", "Held") / "fold_0")


def test_what_a_fold_takes_of_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"CPU": 64.0, "GPU": 8.0}, {"CPU": 4.0}]
    monkeypatch.setattr(Cluster, "nodes", lambda self: nodes)

    def need(loaders: int, **options: object) -> tuple[dict[str, float], str]:
        return RayTraining(**options)._need(Cluster(), loaders)

    assert need(7) == ({"GPU": 1.0, "CPU": 8.0}, "cuda")
    assert need(12) == ({"GPU": 1.0, "CPU": 8.0}, "cuda")  # so that all eight GPUs find CPUs
    assert need(12, gpus=0.25) == ({"GPU": 0.25, "CPU": 2.0}, "cuda")
    assert need(12, gpus=2) == ({"GPU": 2, "CPU": 13.0}, "cuda")
    assert need(3, device="cpu") == ({"CPU": 4.0}, "cpu")
    assert need(3, gpus=0, cpus=6) == ({"CPU": 6.0}, "cpu")
    nodes[:] = nodes[1:]
    assert need(7) == ({"CPU": 4.0}, "cpu")
    assert need(3, device="cuda")[0]["GPU"] == 1  # not quietly on CPUs
    with pytest.raises(EchoPlanError, match="a part of 1, or a whole number"):
        need(1, gpus=1.5)
    with pytest.raises(EchoPlanError, match="--processes_per_fold"):
        need(1, gpus=1, processes=2)
    for gpus, device in ((1, "cpu"), (0, "cuda")):
        with pytest.raises(EchoPlanError, match=f"--gpus_per_fold {gpus} contradicts --device {device}"):
            need(1, gpus=gpus, device=device)


def test_a_checkpoint_is_progress(frame_setup: FoldSetup) -> None:
    watch = FoldWatch({"a": frame_setup}, {"a": 2}, overwrite=False)
    try:
        before = watch.mark("a")
        assert before == watch.mark("a")
        frame_setup.folder.mkdir(parents=True)
        (frame_setup.folder / "checkpoint_latest.pth").touch()
        assert watch.mark("a") == watch.mark("a") != before
    finally:
        watch.close()


def test_the_table_names_what_is_missing() -> None:
    jobs = [FoldJob("Toy", fold, trainer) for trainer in ("B", "x.py:A") for fold in range(2)] + [
        FoldJob("Toy", 0, "C")
    ]
    results = CaseResults({"B fold 0": 0.9, "B fold 1": 0.91, "A fold 0": 0.5, "C fold 0": 0.7}, {"A fold 1": "why"})
    lines = [line.split() for line in results_table(jobs, results).splitlines()]
    assert lines == [
        ["fold", "B", "A", "C"], ["0", "0.9000", "0.5000", "0.7000"], ["1", "0.9100", "failed"],  # C has one fold
        ["mean", "0.9050", "-", "0.7000"],
    ]  # fmt: skip


def test_without_ray_the_command_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert train(["Toy", "0", "--engine", "ray"]) == 1
    assert "pip install '.[ray]'" in capsys.readouterr().err
    assert train(["Toy", "0", "--gpus_per_fold", "1"]) == 1
    assert "add --engine ray" in capsys.readouterr().err


def ends(error: BaseException | None, status: int, folder: Path) -> ChildFailedError:
    """What torchrun's launcher raises of a process that raised an error, or ended without one."""
    file = folder / "error.json"
    if error is not None:
        os.environ["TORCHELASTIC_ERROR_FILE"] = str(file)
        try:
            raise error
        except BaseException as raised:
            ErrorHandler().record_exception(raised)
        finally:
            del os.environ["TORCHELASTIC_ERROR_FILE"]
    return ChildFailedError("train", {0: ProcessFailure(0, 1, status, str(file))})


@pytest.mark.parametrize(
    ("raised", "status", "error", "match"),
    [
        (EchoPlanError("no such fold", remedy="x"), 1, EchoPlanError, r"^no such fold\. What to do: x\.$"),
        (None, 75, Terminated, "^$"),
        (None, -9, Terminated, "^$"),
        (ZeroDivisionError("by zero"), 1, RuntimeError, "Traceback(.|\n)*ZeroDivisionError: by zero"),
    ],
)
def test_how_torchrun_ends_is_understood(
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException | None,
    status: int,
    error: type[BaseException],
    match: str,
    tmp_path: Path,
) -> None:
    def launched(*_: object) -> None:
        raise ends(raised, status, tmp_path)

    monkeypatch.setattr(torchrun, "elastic_launch", lambda config, function: launched)
    where = Folders(tmp_path, tmp_path, tmp_path)
    with pytest.raises(error, match=match):
        torchrun.train_together(FoldJob("Toy", 0), where, processes=2, device="cpu")


def strike_parent(*_: object) -> None:
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(600)


def test_sigterm_ends_the_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torchrun, "_train", strike_parent)
    before, started = signal.getsignal(signal.SIGTERM), time.monotonic()
    with pytest.raises(Terminated):
        torchrun.train_together(FoldJob("Toy", 0), Folders(tmp_path, tmp_path, tmp_path), processes=1, device="cpu")
    assert signal.getsignal(signal.SIGTERM) == before and time.monotonic() - started < 500
