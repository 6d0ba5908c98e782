"""torchrun in a process of its own that ends with its parent; a light module, for that process does nothing else."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from echoplan.cli import RESUMABLE

_RANK = "from echoplan.training.torchrun import train_under; train_under({launcher})"
_LOOK_EVERY_SECONDS = 0.5


def launch() -> None:
    """Start the processes that the command line asks for: their number, then echoplan_train's own words.

    Raises:
        SystemExit: with EchoPlan's exit status, of the process that failed first.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    threading.Thread(target=_die_with_parent, daemon=True).start()
    processes, *arguments = sys.argv[1:]
    rank = _RANK.format(launcher=os.getpid())
    options = ["--standalone", f"--nproc_per_node={processes}", "--no-python", sys.executable, "-c", rank]
    try:
        run(parse_args([*options, *arguments]))
    except SignalException:
        raise SystemExit(RESUMABLE) from None
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode  # of the others, which torchrun ended, it says nothing
        raise SystemExit(RESUMABLE if status == RESUMABLE or status < 0 else 1) from None


def train_under(launcher: int) -> None:
    """One of the processes: echoplan_train, for as long as the launcher lives."""
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
