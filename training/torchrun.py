"""One fold's training on several processes of this machine, which torchrun starts and which do not outlive this one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import uuid
from typing import NoReturn

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from echoplan.cli import RESUMABLE
from echoplan.errors import EchoPlanError, Terminated
from echoplan.paths import Folders
from echoplan.termination import Termination

from .distributed import joined
from .train_fold import FoldJob, train_fold

_LAST_SECONDS = 1.0


def train_together(job: FoldJob, where: Folders, *, processes: int, device: str, validate: bool = False) -> None:
    """What `torchrun --nproc_per_node PROCESSES --no-python echoplan_train ... --c` does, waited for.

    Args:
        job: the fold; its `processes` are data-loading workers of each.
        where: the three folders.
        processes: how many train together.
        device: "cuda" or "cpu".
        validate: only validate a finished training again.

    Raises:
        EchoPlanError: what the training told its user.
        Terminated: SIGTERM came, or a process was killed; it can go on from the last checkpoint.
        RuntimeError: it failed otherwise; with the traceback.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        signals_to_handle="SIGTERM",
    )
    with Termination():  # leaves SIGTERM as it was, which the launcher does not
        try:
            elastic_launch(config, _train)(job, where, device, validate)
        except SignalException:
            raise Terminated from None
        except ChildFailedError as error:
            _raise(error)


def _raise(error: ChildFailedError) -> NoReturn:
    failure = error.get_first_failure()[1]  # of the others, which torchrun ended, it says nothing
    if failure.exitcode == RESUMABLE or failure.exitcode < 0:
        raise Terminated from None
    said = failure.error_file_data["message"]  # "<class>: <what it says>", and more
    kind, _, told = (said["message"] if isinstance(said, dict) else said).partition(": ")
    if kind == EchoPlanError.__name__:
        raise EchoPlanError(told) from None
    raise RuntimeError(str(error)) from None


def _train(job: FoldJob, where: Folders, device: str, validate: bool) -> None:
    """In each of the processes."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        with joined(os.environ, torch.device(device)) as (world, own):
            train_fold(job, job.setup(where), device=own, world=world, resume=True, validate=validate)
    except Terminated:
        sys.exit(RESUMABLE)
    except Exception:
        time.sleep(_LAST_SECONDS)  # another one's end may be the reason, and is the first to be seen then
        raise


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        # At once, without a last checkpoint: somebody else may be about to go on with the fold.
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))  # on Windows, where both end it at once
