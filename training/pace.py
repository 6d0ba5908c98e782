"""How fast a training goes, when it will be done, and whether it is asked to stop before."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import torch

_FORECAST_BATCHES = 20
_FORECAST_SECONDS = 60.0  # slow batches are not waited for
_WARM_UP = 2  # batches in which libraries start and caches fill
_EPOCHS = 5  # that the forecast rests on
_SHORT = 60.0  # seconds of a training whose end nobody has to plan for
_LOOK_SECONDS = 5.0  # between two looks for the file: drives on a network answer slowly
_DAY = 24 * 3600.0


class Pace:
    """Tells a training's time, and when it has to end.

    Args:
        epochs: of the whole training.
        batches: of an epoch.
        device: where it trains.
        stop_file: somebody who wants the training to stop puts it there; one from before is removed.
        stop_at: when to stop, as `time.time` counts; None: never.
        say: takes lines for the log.
    """

    def __init__(
        self,
        epochs: int,
        batches: int,
        *,
        device: torch.device,
        stop_file: Path,
        stop_at: float | None = None,
        say: Callable[[str], None],
    ) -> None:
        self.epochs, self.batches, self.device, self.say = epochs, batches, device, say
        self.stop_file, self.stop_at = stop_file, stop_at
        self._epoch_seconds: deque[float] = deque(maxlen=_EPOCHS)
        self._batch_seconds: list[float] = []
        self._forecast = False
        self._looked = time.monotonic()
        stop_file.unlink(missing_ok=True)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def batch(self, epoch: int, done: int, seconds: float) -> None:
        """A batch was trained on; in time for nobody to wait for a first epoch of hours, a line says how long it takes.

        Args:
            epoch: its number.
            done: batches of the epoch.
            seconds: that the batch took.
        """
        if self._forecast or self._epoch_seconds:
            return
        self._batch_seconds.append(seconds)
        own = self._batch_seconds[_WARM_UP:]
        if not own or (len(own) + _WARM_UP < _FORECAST_BATCHES and sum(own) < _FORECAST_SECONDS):
            return
        self._forecast = True
        each = sum(own) / len(own)
        left = each * ((self.epochs - epoch) * self.batches - done)
        if left > _SHORT:
            self.say(
                f"epoch {epoch}, batch {done} of {self.batches}: about {each:.2g} s a batch: {in_words(left)} for "
                f"{self.epochs - epoch} epochs; --epochs N trains fewer"
            )

    def epoch(self, epoch: int, seconds: float) -> str:
        """For the line of an epoch that took so long: the GPU memory, and when the training will be done."""
        self._epoch_seconds.append(seconds)
        memory = self.memory_gb()
        told = "" if memory is None else f", {memory:.2f} GB of GPU memory"
        left = (self.epochs - epoch - 1) * sum(self._epoch_seconds) / len(self._epoch_seconds)
        if left < 1:
            return told
        end = datetime.now() + timedelta(seconds=left)
        return f"{told}, about {in_words(left)} left{f' (until {end:%a %d %b %H:%M})' if left > _SHORT else ''}"

    def memory_gb(self) -> float | None:
        """The most GPU memory that the process held so far, in 10^9 bytes; None on other devices."""
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self.device.type == "cuda" else None

    @property
    def stop_reason(self) -> str:
        """Why to stop now; empty where nothing asks for it. The file that asks is removed."""
        if self.stop_at is not None and time.time() >= self.stop_at:
            return "the time of --stop_after is up"
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._looked = time.monotonic()
            if self.stop_file.exists():
                self.stop_file.unlink(missing_ok=True)
                return f"the file {self.stop_file} asks for it"
        return ""


def in_words(seconds: float) -> str:
    """A duration at a glance.

    Example:
        >>> in_words(42), in_words(600), in_words(9000), in_words(800_000)
        ('42 s', '10 min', '2.5 h', '9.3 days')
    """
    for limit, unit, name in ((100.0, 1.0, "s"), (5400.0, 60.0, "min")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * _DAY else f"{seconds / _DAY:.1f} days"
