"""What an installation that is interrupted, or killed, leaves: all as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from echoplan.errors import EchoPlanError, Terminated
from echoplan.files import partial_prefix
from echoplan.inference import choose_models
from echoplan.inference.archive import atomic_install, export_model, install_model
from echoplan.paths import Folders

BRIGHT, HOME = "BrightTrainer__EchoPlans__frame", "Dataset001_Phantom"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Where the archive lies that all tests take."""
    return tmp_path_factory.mktemp("made")


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def pair(tmp_path, folders, made, make_model, unet):
    """An archive of two models and what makes them an ensemble, and another machine that has all three already."""
    file = made / "pair.zip"
    if not file.exists():
        models = [make_model(tmp_path / "usb"), unet(tmp_path / "usb", folds=(0,))]
        export_model(choose_models(folders, model_folders=models, trust_code=True), file, dataset=HOME)
    there = Folders(tmp_path / "e" / "raw", tmp_path / "e" / "preprocessed", tmp_path / "e" / "results")
    install_model(file, there, trust_code=True)
    (there.results / HOME / BRIGHT / "mine.txt").write_text("precious")
    return file, there


@pytest.mark.parametrize("error", [KeyboardInterrupt, Terminated, OSError])
@pytest.mark.parametrize("step", range(6))
def test_an_interrupted_overwriting_loses_nothing(step, error, pair, monkeypatch):
    file, there = pair
    before, steps, rename = tree(there.results), [], os.rename

    def interrupted(source, target):
        steps.append(target)
        if len(steps) == step + 1:
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(error):
        install_model(file, there, trust_code=True, overwrite=True)
    assert tree(there.results) == before and not list(there.results.rglob(".installing*"))
    install_model(file, there, trust_code=True, overwrite=True)
    assert not (there.results / HOME / BRIGHT / "mine.txt").exists()


@pytest.mark.parametrize("place", ["install.os.fsync", "install._check_unpacked", "atomic_install.os.rename"])
def test_an_interrupted_installation_leaves_nothing_half(place, pair, tmp_path, monkeypatch):
    file, calls = pair[0], []
    there = Folders(tmp_path / "raw", tmp_path / "preprocessed", tmp_path / "fresh")

    def interrupted(*arguments):
        calls.append(arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(f"echoplan.inference.archive.{place}", interrupted)
        with pytest.raises(KeyboardInterrupt):
            install_model(file, there, trust_code=True)
    assert calls and list(there.results.rglob("*")) == []
    assert install_model(file, there, trust_code=True).home.is_dir()


KILLED = """
import importlib.util, os, shutil, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("atomic_install", sys.argv[1])
atomic_install = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(atomic_install)
steps, rename, unlink = [], os.rename, os.unlink

def killed(function):
    def step(*paths, **more):
        steps.append(paths)
        if len(steps) > int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        function(*paths, **more)
    return step

with atomic_install.workplace(Path(sys.argv[2])) as work:
    for name in "abc":
        (work / "new" / name / "inner").mkdir(parents=True)
        (work / "new" / name / "inner" / "file").write_text("new")
    (work / "new" / "file").write_text("new")
    (work / "new" / "deep" / "d").mkdir(parents=True)
    os.rename, os.unlink = killed(rename), killed(unlink)
    atomic_install.move_into_place(work, ["a", "b", "c", "file", "deep/d"], overwrite=True)
"""


@pytest.mark.skipif(atomic_install.fcntl is None, reason="Windows does not say which processes live")
@pytest.mark.parametrize("step", [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12])
def test_after_a_kill_the_next_installation_puts_things_right(step, tmp_path):
    root = tmp_path / "results" / "Dataset001_Phantom"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        (root / name / "old").write_text(f"old {name}")
    (root / "file").write_text("old")
    before = tree(root)
    run = subprocess.run([sys.executable, "-c", KILLED, atomic_install.__file__, str(root), str(step)], check=False)
    assert run.returncode == -9 and (root / ".installing").is_dir()
    atomic_install.sweep_workplaces(tmp_path / "results")
    if (root / "a" / "old").is_file():
        assert tree(root) == before and not (root / "deep").exists() and step < 10
    else:  # all was in place
        assert (root / "a" / "inner" / "file").read_text() == (root / "file").read_text() == "new"
    assert not (root / ".installing").exists()


def test_an_installation_at_work_is_left_alone(tmp_path):
    home = tmp_path / "Dataset001_Phantom"
    with atomic_install.workplace(home) as work:
        (work / "new" / "a").write_text("new")
        atomic_install.sweep_workplaces(tmp_path)
        with pytest.raises(EchoPlanError, match="another installation"), atomic_install.workplace(home):
            pass
        assert (work / "new" / "a").is_file()
    assert not home.exists()


@pytest.mark.skipif(atomic_install.fcntl is None, reason="Windows does not say which processes live")
def test_what_a_killed_export_left_is_swept(tmp_path, folders, unet):
    unet()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine = partial_prefix()
    left, living = (tmp_path / f"{name}model.zip" for name in (mine.replace(str(os.getpid()), str(dead.pid)), mine))
    left.write_bytes(b"half")
    living.write_bytes(b"half")
    export_model(choose_models(folders), tmp_path / "other.zip", dataset=HOME)
    assert not left.exists() and living.exists()


def test_what_comes_to_be_there_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(EchoPlanError, match="meanwhile"), atomic_install.workplace(tmp_path) as work:
        (work / "new" / "a").write_text("new")
        (tmp_path / "a").write_text("mine")
        atomic_install.move_into_place(work, ["a"], overwrite=False)
    assert tree(tmp_path) == {Path("a"): b"mine"}
