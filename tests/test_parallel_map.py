"""Working through cases, in this process and in workers, past broken ones and with workers that die."""

from __future__ import annotations

import math
import operator
import signal
import sys
import time

import pytest

from echoplan.errors import EchoPlanError
from echoplan.parallel_map import run_cases
from echoplan.workers import WorkerPool

# Worker processes import functions by name, and pytest's importlib mode gives test modules no name they could use.
WORKERS = """
import os, signal, time
from echoplan.errors import EchoPlanError
from echoplan.files import atomic_path

class Unsendable(Exception):
    def __init__(self, first, second):
        super().__init__("only the text can be sent")

def later_first(number):
    time.sleep(0.3 / (1 + number))
    return number ** 2

def fail(kind):
    if kind == "user":
        raise EchoPlanError("the frame time is zero", file="a.dcm", remedy="give it in cases.csv")
    if kind == "full":
        raise EchoPlanError("the disk is full", fatal=True)
    if kind == "unsendable":
        raise Unsendable(1, 2)
    if kind == "bug":
        raise KeyError("frames")
    return kind

def write_slowly(folder):
    with atomic_path(folder / "mask.nii.gz") as temporary:
        temporary.write_text("half")
        time.sleep(600)

def stop_once_another_writes(folder):
    while not list(folder.iterdir()):
        time.sleep(0.02)
    raise EchoPlanError("the disk is full", fatal=True)

def write_or_stop(folder, writes):
    return write_slowly(folder) if writes else stop_once_another_writes(folder)

def die_if(number):
    if number < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(number)
    return number
"""


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """The module of functions above, importable here and in worker processes."""
    folder = tmp_path_factory.mktemp("workers")
    (folder / "case_functions.py").write_text(WORKERS)
    sys.path.insert(0, str(folder))
    import case_functions

    yield case_functions
    sys.path.remove(str(folder))
    del sys.modules["case_functions"]


@pytest.mark.parametrize("processes", [0, 2])
def test_every_case_gets_its_own_result_whatever_finishes_first(workers, processes):
    results = run_cases(workers.later_first, {f"case{n}": (n,) for n in range(6)}, processes=processes, trial=False)
    assert results.done == {f"case{n}": n**2 for n in range(6)}
    assert results.failures == {}


@pytest.mark.parametrize("processes", [0, 2])
def test_it_goes_on_past_broken_cases(workers, processes):
    arguments = {"a": ("user",), "b": ("bug",), "c": ("fine",), "d": ("unsendable",), "e": ("fine",)}
    results = run_cases(workers.fail, arguments, processes=processes, trial=False)
    assert results.done == {"c": "fine", "e": "fine"}
    assert results.failures == {
        "a": "the frame time is zero (a.dcm). What to do: give it in cases.csv.",
        "b": "KeyError: 'frames'",
        "d": "Unsendable: only the text can be sent",
    }


@pytest.mark.parametrize("processes", [0, 2])
def test_the_traceback_of_a_broken_case_is_in_the_log(workers, processes, caplog):
    with caplog.at_level("DEBUG", "echoplan.parallel_map"):
        run_cases(workers.fail, {"a": ("bug",), "b": ("fine",)}, processes=processes, trial=False)
    assert "case a" in caplog.text and 'raise KeyError("frames")' in caplog.text


@pytest.mark.parametrize("processes", [0, 1])
def test_an_error_no_case_can_escape_stops_the_work(workers, processes, tmp_path):
    arguments = {"a": ("fine",), "b": ("full",), "c": ("fine",)}
    with pytest.raises(EchoPlanError, match="the disk is full") as caught:
        run_cases(workers.fail, arguments, processes=processes, trial=False)
    assert caught.value.fatal


def test_workers_that_are_stopped_leave_no_half_written_file(workers, tmp_path):
    arguments = {"slow": (tmp_path, True), "full": (tmp_path, False)}
    with pytest.raises(EchoPlanError, match="the disk is full"):
        run_cases(workers.write_or_stop, arguments, processes=2, trial=False)
    deadline = time.monotonic() + 500
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)  # the worker is told to stop, not waited for
    assert list(tmp_path.iterdir()) == []


def test_a_killed_worker_is_told_at_once_and_costs_its_case_alone(workers, caplog):
    arguments = {"quick": (0,), "killed": (-1,), "after": (0,)}
    results = run_cases(workers.die_if, arguments, processes=1, trial=False)
    assert results.done == {"quick": 0, "after": 0} and list(results.failures) == ["killed"]
    assert "a worker process died while working on killed: Killed. What to do:" in results.failures["killed"]
    assert "-np" in results.failures["killed"] and "died while working on killed" in caplog.text


def test_a_value_that_cannot_be_sent_back_is_that_cases_failure():
    results = run_cases(
        operator.methodcaller("__iter__"), {"a": ([1],), "b": ((x for x in ()),)}, processes=1, trial=False
    )
    assert "b" in results.failures and "pickle" in results.failures["b"]
    assert "a" in results.done


@pytest.mark.parametrize("processes", [0, 4])
def test_no_cases_at_all(processes):
    results = run_cases(math.sqrt, {}, processes=processes, trial=False)
    assert results.done == results.failures == {}


def test_slow_cases_move_to_workers_after_the_first(workers, monkeypatch):
    monkeypatch.setattr("echoplan.parallel_map._STARTING_SECONDS", 0.01)
    results = run_cases(workers.die_if, {"a": (0.05,), "killed": (-1,), "b": (0.05,)}, processes=2)
    assert list(results.done) == ["a", "b"] and list(results.failures) == ["killed"]


def test_ctrl_c_goes_through_in_this_process():
    finished = []

    def interrupted(case):
        if case == "b":
            signal.raise_signal(signal.SIGINT)
        finished.append(case)

    with pytest.raises(KeyboardInterrupt):
        run_cases(interrupted, {case: (case,) for case in "abc"})
    assert finished == ["a"]


def test_ctrl_c_does_not_wait_for_the_workers(workers, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("echoplan.parallel_map.as_completed", interrupt)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_cases(workers.die_if, {"a": (600,), "b": (600,)}, processes=2, trial=False)
    assert time.monotonic() - started < 500


def test_nobody_waits_for_a_worker_that_will_not_come():
    pool = WorkerPool(1)
    worker = pool._idle.get()  # as if a task had it that ends with it
    waits = pool.submit("a", math.sqrt, 4)
    pool.close()
    with pytest.raises(EchoPlanError, match="given up"):
        waits.result(timeout=60)
    assert not worker.process.is_alive()


def test_workers_start_only_where_they_pay(monkeypatch):
    """Short work stays in this process; long work, once the first case has shown how long it is, goes to workers."""
    handed_over = []
    monkeypatch.setattr(
        "echoplan.parallel_map._run_in_pool", lambda function, waiting, *rest: handed_over.append(list(waiting))
    )
    arguments = {name: (0.05,) for name in "abcd"}
    assert len(run_cases(time.sleep, arguments, processes=2).done) == 4 and not handed_over
    monkeypatch.setattr("echoplan.parallel_map._STARTING_SECONDS", 0.01)
    assert list(run_cases(time.sleep, arguments, processes=2).done) == ["a"]
    assert handed_over == [["b", "c", "d"]]
