"""Nothing is lost: commands that are killed or terminated go on as if nobody had disturbed them.

A command is halted (SIGSTOP) before it gets its signal, so that it is surely in the middle of its work.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from echoplan.files import partial_prefix
from echoplan.scripts import preprocess
from echoplan.training.checkpoint import load_checkpoint

from .running import (
    Command,
    assert_none_left,
    busy_child,
    children,
    kill_and_hear,
    send,
    started,
    stop,
    told,
    wait_until,
    words,
)

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
STORE, MODEL = "EchoPlans_96x96", "UNetTrainer__EchoPlans__frame"
RESUMABLE = 75
CASES = 60
DEAD = 2**22 + 1  # the number of no process: Linux gives none so large

# Preprocessing ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The trained project's clips under many names, preprocessed without any disturbance."""
    project = type(trained)(tmp_path_factory.mktemp("many"))
    shutil.copytree(trained.raw, project.raw)
    for name in ("EchoPlans.json", "dataset.json"):
        project.preprocessed.mkdir(parents=True, exist_ok=True)
        shutil.copy(trained.preprocessed / name, project.preprocessed)
    with open(project.raw / "cases.csv", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == "train"]
    named = [{**rows[n % len(rows)], "case": f"case{n:03}", "patient": f"p{n:03}"} for n in range(CASES)]
    with open(project.raw / "cases.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(named)
    whole = type(trained)(tmp_path_factory.mktemp("whole"))
    shutil.copytree(project.root, whole.root, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ECHOPLAN_ROOT", str(whole.root))
        assert preprocess(["-d", "Phantom", "-np", "0"]) == 0
    assert len(content(whole)) == 3 * CASES + 1 + CASES
    return project, whole


def content(project: Any) -> dict[str, bytes]:
    """Every file of the store and of the ground truth, temporary ones excepted."""
    folders = (project.preprocessed / STORE, project.preprocessed / "gt_segmentations")
    files = [path for folder in folders for path in folder.glob("*") if not path.name.startswith(".partial-")]
    return {path.name: path.read_bytes() for path in files}


def finished(project: Any) -> dict[str, int]:
    """The cases that are whole, with the time their clip was written."""
    store = project.preprocessed / STORE
    return {path.stem: (store / f"{path.stem}.b2nd").stat().st_mtime_ns for path in store.glob("case*.json")}


def plant_halves(project: Any, whole: Any) -> None:
    """Beside what is finished: what other, harder crashes may leave of a case that is not."""
    store, case = project.preprocessed / STORE, f"case{CASES - 1:03}"
    assert case not in finished(project)
    for name in (f"{case}.b2nd", f"{case}_seg.b2nd", f"{case}.json"):
        half = (whole.preprocessed / STORE / name).read_bytes()[:50]
        partial_file(store, name).write_bytes(half)
        if not name.endswith(".json"):
            (store / name).write_bytes(half)


def partial_file(folder: Path, name: str) -> Path:
    """What a process of this machine leaves that was killed while it wrote a file."""
    return folder / (partial_prefix().replace(f"-{os.getpid()}-", f"-{DEAD}-") + name)


def freeze_in_the_middle(command: Command, project: Any) -> int:
    """Stop the command once some of its cases are finished; how many."""
    wait_until(lambda: len(finished(project)) >= 3, command)
    stop(command)
    count = len(finished(project))
    assert count < CASES - 1
    return count


def with_workers(command: Command, project: Any) -> list[int]:
    """Make the command take so long that it starts workers; their process ids."""
    count = freeze_in_the_middle(command, project)
    time.sleep(1 + 8 * count / (CASES - count) * 2)  # it starts them for work of more than 8 seconds
    os.kill(command.pid, signal.SIGCONT)
    return wait_until(lambda: two_workers(command), command)


def two_workers(command: Command) -> list[int] | None:
    """Both workers, once they run a program of their own: before that, Python's helper too is a copy of the process."""
    found = [pid for pid in children(command) if "spawn_main" in words(pid)]
    return found if len(found) == 2 else None


def go_on(project: Any, whole: Any, kept: dict[str, int]) -> None:
    """The same command again finishes, keeps what was finished, and leaves what the undisturbed one left."""
    assert 0 < len(kept) < CASES
    said = project.run("echoplan_preprocess", "-d", "Phantom", "-np", "0").stderr
    assert f"{CASES - len(kept)} cases preprocessed, {len(kept)} were finished before" in said
    now = finished(project)
    assert {case: now[case] for case in kept} == kept
    assert content(project) == content(whole)
    assert not list(project.preprocessed.rglob(".partial-*"))


@pytest.fixture
def half_done(many: Any, project: Any) -> Any:
    """A project with nothing preprocessed, and the undisturbed one."""
    shutil.copytree(many[0].root, project.root, dirs_exist_ok=True)
    return project, many[1]


def test_a_killed_preprocessing_goes_on(half_done: Any) -> None:
    project, whole = half_done
    with started(project, "echoplan_preprocess", "-d", "Phantom", "-np", 0) as command:
        freeze_in_the_middle(command, project)
        os.kill(command.pid, signal.SIGKILL)
        told(command, status=-signal.SIGKILL)
    kept = finished(project)
    plant_halves(project, whole)
    go_on(project, whole, kept)


def test_workers_end_with_a_preprocessing_that_is_killed(half_done: Any) -> None:
    project, whole = half_done
    with started(project, "echoplan_preprocess", "-d", "Phantom", "-np", 2) as command:
        with_workers(command, project)
        before = len(finished(project))
        wait_until(lambda: len(finished(project)) > before, command)
        os.kill(command.pid, signal.SIGKILL)
        told(command, status=-signal.SIGKILL)
        assert_none_left(command)
    kept = finished(project)
    plant_halves(project, whole)
    go_on(project, whole, kept)


@pytest.mark.parametrize("whom", ["the command", "all its processes"])
def test_a_terminated_preprocessing_ends_its_workers_and_goes_on(half_done: Any, whom: str) -> None:
    project, whole = half_done
    with started(project, "echoplan_preprocess", "-d", "Phantom", "-np", 2) as command:
        with_workers(command, project)
        (os.kill if whom == "the command" else os.killpg)(command.pid, signal.SIGTERM)
        assert "run the same command again to go on" in told(command, status=RESUMABLE)
        assert_none_left(command)
    if whom == "the command":
        go_on(project, whole, finished(project))


def test_a_killed_preprocessing_worker_is_named_with_its_case(half_done: Any) -> None:
    project, _ = half_done
    with started(project, "echoplan_preprocess", "-d", "Phantom", "-np", 2) as command:
        worker, _ = with_workers(command, project)
        begun = len(finished(project))
        wait_until(lambda: len(finished(project)) > begun, command)  # workers do start here
        kill_and_hear(worker, command, "a worker process died")
        said = told(command, status=1)
        assert "a worker process died while working on case0" in said and "what is finished is kept" in said
        assert_none_left(command)


# Training -----------------------------------------------------------------------------------------------------------

LONG = ("--epochs", 4, "--set", "iterations_per_epoch=20", "--set", "batch_size=4", "--set", "base_features=8",
        "--set", "optimiser=adamw", "--seed", 5)  # fmt: skip


def train(project: Any, *more: object) -> list[object]:
    return ["echoplan_train", "Phantom", 0, "-tr", "UNetTrainer", *LONG, *more]


def planned(trained: Any, project: Any) -> Any:
    """The trained project's preprocessed data, without its results."""
    shutil.copytree(trained.root / "preprocessed", project.root / "preprocessed")
    return project


def epochs_done(fold: Path) -> int:
    path = fold / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def history(fold: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (fold / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if "seconds" not in name} for entry in entries]


def test_a_terminated_and_then_killed_training_goes_on_to_the_bit(trained: Any, project: Any, tmp_path: Path) -> None:
    planned(trained, project)
    fold = project.results / MODEL / "fold_0"
    project.run(*train(project, "-np", 0))
    whole = fold.rename(tmp_path / "whole")

    with started(project, *train(project, "-np", 0)) as command:
        wait_until(lambda: epochs_done(fold), command)
        stop(command)
        assert epochs_done(fold) < 4
        send(command, signal.SIGTERM)
        assert "saved, --c goes on from there" in told(command, status=RESUMABLE)
    latest = load_checkpoint(fold / "checkpoint_latest.pth")
    assert latest["progress"]["batches"] > 0  # within an epoch, which is gone on with
    with started(project, *train(project, "-np", 0, "--c")) as command:
        wait_until(lambda: epochs_done(fold) >= max(2, latest["epochs"] + 1), command)
        stop(command)
        assert epochs_done(fold) < 4
        os.kill(command.pid, signal.SIGKILL)
        told(command, status=-signal.SIGKILL)
    project.run(*train(project, "-np", 0, "--c"))

    for name in ("final", "best", "latest"):
        mine, theirs = (load_checkpoint(folder / f"checkpoint_{name}.pth") for folder in (fold, whole))
        assert mine["network"].keys() == theirs["network"].keys()
        assert all(torch.equal(value, theirs["network"][key]) for key, value in mine["network"].items()), name
    assert history(fold) == history(whole)
    for name in ("summary.json", "ef.csv"):
        assert (fold / "validation" / name).read_text() == (whole / "validation" / name).read_text()


def test_a_killed_data_loading_worker_is_named_with_its_case(trained: Any, project: Any) -> None:
    planned(trained, project)
    endless = train(project, "-np", 1, "--set", "iterations_per_epoch=100000")
    with started(project, *endless) as command:
        worker = wait_until(lambda: busy_child(command), command)  # it has read some samples
        kill_and_hear(worker, command, "a data-loading worker died")
        said = told(command, status=1)
        assert said.count("error: ") == 1
        # Between two samples it reads no case.
        assert re.search(r"a data-loading worker died or hangs( while reading patient0\S+)?: Killed", said)
        assert "resume with --c" in said
        assert_none_left(command)


# Prediction ---------------------------------------------------------------------------------------------------------


def masks(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("[!.]*.nii.gz")}


def test_a_terminated_and_then_killed_prediction_goes_on(trained: Any, tmp_path: Path) -> None:
    clips, whole, out = (tmp_path / name for name in ("clips", "whole", "out"))
    clips.mkdir()
    for number in range(4):
        for path in (trained.raw / "imagesTs").glob("*.nii.gz"):
            shutil.copy(path, clips / f"p{number}{path.name}")
    predict = ["echoplan_predict", "-i", clips, "-m", trained.results / MODEL, "-f", 0, "-np", 0]
    trained.run(*predict, "-o", whole)
    count = len(masks(whole))
    assert count == 16

    for sent, status, least in ((signal.SIGTERM, RESUMABLE, 1), (signal.SIGKILL, -signal.SIGKILL, 3)):
        kept = masks(out)
        with started(trained, *predict, "-o", out, "--continue_prediction") as command:
            wait_until(lambda kept=kept, least=least: len(masks(out)) >= len(kept) + least, command)
            stop(command)
            assert len(masks(out)) < count - 1
            send(command, sent)
            told(command, status=status)
        assert kept.items() <= masks(out).items()
    kept = masks(out)
    missing = sorted(masks(whole).keys() - kept.keys())[-1]
    for path in (partial_file(out, missing), partial_file(out / "evidence", f"{missing[:-7]}.npz")):
        path.write_bytes(b"half")
    (out / "evidence" / f"{missing[:-7]}.npz").write_bytes(b"half")
    trained.run(*predict, "-o", out, "--continue_prediction")
    assert kept.items() <= masks(out).items()
    for name in masks(whole):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    for name in ("ef_report.csv", "ef_report.json"):
        assert (out / name).read_text() == (whole / name).read_text(), name
    assert not list(out.rglob(".partial-*"))
