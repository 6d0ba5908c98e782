"""One fold's training on several processes of this machine: torchrun as a child that does not outlive its parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import IO

from echoplan.cli import RESUMABLE
from echoplan.errors import EchoPlanError, Terminated
from echoplan.paths import Folders

from .termination import Termination
from .train_fold import FoldJob

_LAUNCH = "from echoplan.training.torchrun import launch; launch()"
_TRAIN = "from echoplan.training.torchrun import train_under; train_under({launcher})"
_LOOK_EVERY_SECONDS = 0.2
_LAST_LINES = 30


def train_together(
    job: FoldJob, where: Folders, *, processes: int, device: str, threads: int = 1, validate: bool = False
) -> None:
    """What `torchrun --nproc_per_node PROCESSES --no-python echoplan_train ... --c` does, waited for.

    Args:
        job: the fold; its `processes` are data-loading workers of each.
        where: the three folders.
        processes: how many train together.
        device: "cuda" or "cpu".
        threads: CPU threads of each.
        validate: only validate a finished training again.

    Raises:
        EchoPlanError: what the training told its user.
        Terminated: SIGTERM came, or a process was killed; --c goes on from the last checkpoint.
        RuntimeError: it failed otherwise; with the last lines it wrote.
    """
    command = [sys.executable, "-c", _LAUNCH, str(processes), *_arguments(job, device, "--val" if validate else "--c")]
    environment = {f"echoplan_{name}": str(getattr(where, name)) for name in ("raw", "preprocessed", "results")}
    environment = {**os.environ, **environment, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile() as said, Termination() as termination:
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said
        )
        try:
            passed_on = False
            while child.poll() is None:
                if termination.requested and not passed_on:
                    child.terminate()
                    passed_on = True
                time.sleep(_LOOK_EVERY_SECONDS)
        finally:
            if child.stdin is not None:
                child.stdin.close()  # what the launcher waits for
            child.wait()
        if child.returncode:
            _raise(child.returncode, said)


def _arguments(job: FoldJob, device: str, how: str) -> list[str]:
    """The job as echoplan_train's command line."""
    settings = [part for name, value in job.settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    weights = [] if job.weights is None else ["-pretrained_weights", str(job.weights)]
    numbers = ["--seed", str(job.seed), "-np", str(job.processes)]
    named = [job.dataset, str(job.fold), "-tr", job.trainer, "-p", job.plans_name, "--device", device]
    return [*named, *numbers, *settings, *weights, how]


def _raise(status: int, said: IO[bytes]) -> None:
    if status == RESUMABLE or status < 0:
        raise Terminated
    said.seek(0)
    lines = said.read().decode(errors="replace").splitlines()
    for line in lines:
        if line.startswith("error: "):
            raise EchoPlanError(line.removeprefix("error: "))
    raise RuntimeError("\n".join(lines[-_LAST_LINES:]))


def launch() -> None:
    """In the child: start the processes that its command line asks for, their number and then echoplan_train's words.

    Raises:
        SystemExit: with EchoPlan's exit status, of the process that failed first.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    threading.Thread(target=_die_with_parent, daemon=True).start()
    processes, *arguments = sys.argv[1:]
    train = _TRAIN.format(launcher=os.getpid())
    options = ["--standalone", f"--nproc_per_node={processes}", "--no-python", sys.executable, "-c", train]
    try:
        run(parse_args([*options, *arguments]))
    except SignalException:
        raise SystemExit(RESUMABLE) from None
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode  # of the others, which torchrun ended, it says nothing
        raise SystemExit(RESUMABLE if status == RESUMABLE or status < 0 else 1) from None


def train_under(launcher: int) -> None:
    """One of the processes that train: echoplan_train, for as long as the launcher lives."""
    threading.Thread(target=_die_without, args=(launcher,), daemon=True).start()
    from echoplan.scripts import train

    sys.exit(train())


def _die_with_parent() -> None:
    """Wait for the end of the parent, which closes its end of the pipe."""
    os.read(0, 1)
    _die()


def _die_without(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(_LOOK_EVERY_SECONDS)
    _die()


def _die() -> None:
    # At once, without a last checkpoint: somebody else may be about to go on with the fold.
    os.kill(os.getpid(), signal.SIGKILL)
