"""Nothing is lost: commands that are killed or terminated go on as if nobody had disturbed them.

A process is stopped (SIGSTOP) before it gets its signal, so that it is surely in the middle of its work.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from echoplan.files import partial_prefix
from echoplan.preprocessing.commands import preprocess
from echoplan.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
STORE, MODEL = "EchoPlans_96x96", "UNetTrainer__EchoPlans__frame"
RESUMABLE = 75
CASES = 60
DEAD = 2**22 + 1  # the number of no process: Linux gives none so large
PATIENCE = 120  # seconds; for machines that do much else
DEATH_KNOWN_WITHIN = 60  # seconds from a worker's death to the line that names it, on busy cores

# Processes ----------------------------------------------------------------------------------------------------------


@contextmanager
def started(project: Any, *words: object) -> Iterator[subprocess.Popen[str]]:
    """A command in a process group of its own, of which nothing is left afterwards."""
    process = subprocess.Popen(
        project.command(*words),
        env=project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE)


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """What `condition` says once it says something; the process must go on until then."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        assert process.poll() is None, f"it ended too soon: {process.communicate()[1]}"
        time.sleep(0.002)
    raise AssertionError("waited in vain")


def send(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """A signal for a process that is stopped."""
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)


def told(process: subprocess.Popen[str], *, status: int, before: str = "") -> str:
    """What the process said, once it has ended as it should; `before` was heard already."""
    _, rest = process.communicate(timeout=PATIENCE)
    said = before + rest
    assert process.returncode == status, said
    assert "Traceback" not in said
    return said


def kill_and_hear(worker: int, process: subprocess.Popen[str], words: str) -> str:
    """Kill a worker; what the command said until and with the line of these words, which must come soon.

    It takes a fraction of a second on a quiet machine. A loader that waited for the dead one would take 300.
    """
    os.kill(worker, signal.SIGKILL)
    killed, said = time.monotonic(), ""
    while words not in said:
        line = process.stderr.readline() if process.stderr else ""
        assert line, f"it ended without a word of it: {said}"
        said += line
    assert time.monotonic() - killed < DEATH_KNOWN_WITHIN
    return said


def processes(belong: Callable[[int, int], bool]) -> list[int]:
    """Living processes of which `belong(parent, process group)` holds."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, parent, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has ended meanwhile
            continue
        if state not in "ZX" and belong(int(parent), int(group)):
            found.append(int(entry.name))
    return found


def children(process: subprocess.Popen[str]) -> list[int]:
    """Its workers: spawned ones, or copies of the process itself; not Python's own helper."""
    return [pid for pid in processes(lambda parent, _: parent == process.pid) if "resource_tracker" not in words(pid)]


def words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def busy_child(process: subprocess.Popen[str]) -> int | None:
    """A child that has computed for a while."""
    for pid in children(process):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[11]) + int(fields[12]) > 0.3 * os.sysconf("SC_CLK_TCK"):
            return pid
    return None


def assert_none_left(process: subprocess.Popen[str]) -> None:
    """No process of the command's group lives on."""
    deadline = time.monotonic() + 30
    while left := processes(lambda _, group: group == process.pid):
        assert time.monotonic() < deadline, [words(pid) for pid in left]
        time.sleep(0.05)


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


def freeze_in_the_middle(process: subprocess.Popen[str], project: Any) -> int:
    """Stop the command once some of its cases are finished; how many."""
    wait_until(lambda: len(finished(project)) >= 3, process)
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.05)
    count = len(finished(project))
    assert count < CASES - 1
    return count


def with_workers(process: subprocess.Popen[str], project: Any) -> list[int]:
    """Make the command take so long that it starts workers; their process ids."""
    count = freeze_in_the_middle(process, project)
    time.sleep(1 + 8 * count / (CASES - count) * 2)  # it starts them for work of more than 8 seconds
    process.send_signal(signal.SIGCONT)
    return wait_until(lambda: two_workers(process), process)


def two_workers(process: subprocess.Popen[str]) -> list[int] | None:
    """Both workers, once they run a program of their own: before that, Python's helper too is a copy of the process."""
    found = [pid for pid in children(process) if "spawn_main" in words(pid)]
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
    with started(project, "echoplan_preprocess", "-d", "Phantom", "-np", 0) as process:
        freeze_in_the_middle(process, project)
        process.kill()
        told(process, status=-signal.SIGKILL)
    kept = finished(project)
    plant_halves(project, whole)
    go_on(project, whole, kept)


def test_workers_end_with_a_preprocessing_that_is_killed(half_done: Any) -> None:
    project, whole = half_done
    with started(project, "echoplan_preprocess", "-d", "Phantom", "-np", 2) as process:
        with_workers(process, project)
        before = len(finished(project))
        wait_until(lambda: len(finished(project)) > before, process)
        process.kill()
        told(process, status=-signal.SIGKILL)
        assert_none_left(process)
    kept = finished(project)
    plant_halves(project, whole)
    go_on(project, whole, kept)


@pytest.mark.parametrize("whom", ["the command", "all its processes"])
def test_a_terminated_preprocessing_ends_its_workers_and_goes_on(half_done: Any, whom: str) -> None:
    project, whole = half_done
    with started(project, "echoplan_preprocess", "-d", "Phantom", "-np", 2) as process:
        with_workers(process, project)
        (os.kill if whom == "the command" else os.killpg)(process.pid, signal.SIGTERM)
        assert "run the same command again to go on" in told(process, status=RESUMABLE)
        assert_none_left(process)
    if whom == "the command":
        go_on(project, whole, finished(project))


def test_a_killed_preprocessing_worker_is_named_with_its_case(half_done: Any) -> None:
    project, _ = half_done
    with started(project, "echoplan_preprocess", "-d", "Phantom", "-np", 2) as process:
        worker, _ = with_workers(process, project)
        heard = kill_and_hear(worker, process, "a worker process died")
        said = told(process, status=1, before=heard)
        assert "a worker process died while working on case0" in said and "what is finished is kept" in said
        assert_none_left(process)


# Training -----------------------------------------------------------------------------------------------------------

LONG = ("--epochs", 4, "--set", "iterations_per_epoch=40", "--set", "batch_size=4", "--set", "base_features=8",
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

    with started(project, *train(project, "-np", 0)) as process:
        wait_until(lambda: epochs_done(fold), process)
        process.send_signal(signal.SIGSTOP)
        assert epochs_done(fold) < 4
        send(process, signal.SIGTERM)
        assert "saved, --c goes on from there" in told(process, status=RESUMABLE)
    latest = load_checkpoint(fold / "checkpoint_latest.pth")
    assert latest["progress"]["batches"] > 0  # within an epoch, which is gone on with
    with started(project, *train(project, "-np", 0, "--c")) as process:
        wait_until(lambda: epochs_done(fold) >= max(2, latest["epochs"] + 1), process)
        process.send_signal(signal.SIGSTOP)
        assert epochs_done(fold) < 4
        process.kill()
        told(process, status=-signal.SIGKILL)
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
    with started(project, *endless) as process:
        worker = wait_until(lambda: busy_child(process), process)  # it has read some samples
        heard = kill_and_hear(worker, process, "a data-loading worker died")
        said = told(process, status=1, before=heard)
        assert said.count("error: ") == 1
        # Between two samples it reads no case.
        assert re.search(r"a data-loading worker died or hangs( while reading patient0\S+)?: Killed", said)
        assert "resume with --c" in said
        assert_none_left(process)


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
        with started(trained, *predict, "-o", out, "--continue_prediction") as process:
            wait_until(lambda kept=kept, least=least: len(masks(out)) >= len(kept) + least, process)
            process.send_signal(signal.SIGSTOP)
            assert len(masks(out)) < count - 1
            send(process, sent)
            told(process, status=status)
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
