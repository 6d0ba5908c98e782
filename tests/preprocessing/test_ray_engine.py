"""Cases on a Ray cluster come out as they do without one."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from echoplan import cluster_map
from echoplan.cluster import Cluster
from echoplan.cluster_map import ClusterMap
from echoplan.errors import EchoPlanError
from echoplan.files import read_json, write_json
from echoplan.multi_dataset import MultiDataset
from echoplan.paths import Folders
from echoplan.preprocessing.dataset import preprocess_dataset
from echoplan.scripts import preprocess


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_stores_equal_the_plain_ones_and_broken_cases_are_listed(
    two_nodes, project, fan_dataset, plan_with, tmp_path, monkeypatch, capsys, caplog
) -> None:
    plan = plan_with(A=(64, 64), B=(96, 128))
    (fan_dataset.folder / "imagesTr" / "c1.nii.gz").write_bytes(b"no image")
    wrong = {"spacing_row_mm": 141.0, "spacing_col_mm": 141.0}
    fan_dataset = replace(fan_dataset, cases=tuple(replace(case, **wrong) for case in fan_dataset.cases))
    fan_dataset.write()
    plain = Folders(project.raw, tmp_path / "plain", project.results)
    expected = preprocess_dataset(plain, MultiDataset.of(fan_dataset), plan)
    target = project.preprocessed / "Dataset007_FAN"
    plan.write(target / "EchoPlans.json")
    monkeypatch.chdir(tmp_path)
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"echoplan_{name}", name)  # made absolute for the workers
    command = ["-d", "FAN", "--engine", "ray"]
    assert preprocess(command) == 1
    said = capsys.readouterr()
    assert "2 cases are preprocessed" in said.out and f"c1: {expected.failures['c1']}" in said.err
    (target / "EchoPlans.json").rename(tmp_path / "EchoPlans.json")
    assert content(target) == content(plain.preprocessed / "Dataset007_FAN")
    assert list(project.preprocessed.glob(".run-*")) == []
    assert set(read_json(target / "warnings.json")) == {"c0", "c2"}
    assert sum("2 of 3 cases (c0, c2): " in message for message in caplog.messages) == 2  # plain, and here

    # What is finished is left.
    clip = target / "EchoPlans_64x64" / "c0.b2nd"
    before = clip.stat().st_mtime_ns
    engine = ClusterMap(Cluster(), {"CPU": 1.0}, project.preprocessed, (project.raw,))
    again = preprocess_dataset(project, MultiDataset.of(fan_dataset), plan, engine=engine)
    assert again.done == {"c0": False, "c2": False} and list(again.done) == list(expected.done)
    assert again.failures == expected.failures and clip.stat().st_mtime_ns == before


def die_or_count(file: Path, deaths: int) -> int:
    """Kill this process the first `deaths` times."""
    before = read_json(file)
    write_json(file, before + 1)
    if before < deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return before


def full_disk(_: Path) -> None:
    raise EchoPlanError("the disk is full", fatal=True)


def test_dead_workers_are_replaced_but_not_for_ever(two_nodes, tmp_path, monkeypatch) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    monkeypatch.setattr(cluster_map, "ATTEMPTS", 2)
    where = Folders(*(tmp_path / name for name in ("raw", "preprocessed", "results")))
    where.raw.mkdir()
    for name in ("well", "once", "always"):
        write_json(tmp_path / f"{name}.json", 0)
    arguments = {
        name: (tmp_path / f"{name}.json", deaths) for name, deaths in (("always", 9), ("once", 1), ("well", 0))
    }
    run_cases = ClusterMap(Cluster(), {"CPU": 1.0}, where.preprocessed, (where.raw,))
    results = run_cases(die_or_count, arguments)
    assert results.done == {"once": 1, "well": 0}
    assert list(results.failures) == ["always"] and "each of 2 attempts" in results.failures["always"]
    assert read_json(tmp_path / "always.json") == 2
    with pytest.raises(EchoPlanError, match=r"the disk is full"):
        run_cases(full_disk, {"a": (tmp_path,), "b": (tmp_path,)})
    assert list(where.preprocessed.iterdir()) == []
