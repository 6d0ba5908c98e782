"""What an installation that is interrupted, or killed, leaves: all as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from echoplan.errors import EchoPlanError, Terminated
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
        export_model(choose_models(folders, model_folders=models), file, dataset=HOME)
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


@pytest.mark.parametrize("place", ["install._extract", "install.check_unpacked", "atomic_install.os.rename"])
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
import importlib.util, os, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("atomic_install", sys.argv[1])
atomic_install = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(atomic_install)
steps, rename = [], os.rename

def killed(source, target):
    steps.append(target)
    if len(steps) > int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)

with atomic_install.placing(Path(sys.argv[2])) as making:
    for name in "abc":
        (making.new / name / "inner").mkdir(parents=True)
        (making.new / name / "inner" / "file").write_text("new")
    (making.new / "file").write_text("new")
    (making.new / "deep" / "d").mkdir(parents=True)
    os.rename = killed
    making.commit(["a", "b", "c", "file", "deep/d"], overwrite=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(atomic_install.fcntl is None, reason="Windows does not say which processes live")
@pytest.mark.parametrize("step", [0, 1, 2, 3, 5, 6, 7, 20])
def test_after_a_kill_the_next_installation_puts_things_right(step, tmp_path):
    root = tmp_path / "results"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        (root / name / "old").write_text(f"old {name}")
    (root / "file").write_text("old")
    before = tree(root)
    run = subprocess.run([sys.executable, "-c", KILLED, atomic_install.__file__, str(root), str(step)], check=False)
    assert run.returncode == -9 and list(root.glob(".installing-*"))
    with atomic_install.placing(root) as other:
        atomic_install.put_right(root)  # leaves one that is at work alone
        assert other.new.is_dir() and len(list(root.glob(".installing-*"))) == 1
    if step < 20:
        assert tree(root) == before and not (root / "deep").exists()
    else:  # all was in place
        assert (root / "a" / "inner" / "file").read_text() == (root / "file").read_text() == "new"
    assert not list(root.glob(".installing-*"))


def test_what_comes_to_be_there_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(EchoPlanError, match="meanwhile"), atomic_install.placing(tmp_path) as making:
        (making.new / "a").write_text("new")
        (tmp_path / "a").write_text("mine")
        making.commit(["a"], overwrite=False)
    assert tree(tmp_path) == {Path("a"): b"mine"}
