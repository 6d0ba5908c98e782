"""What a training watches and writes down: its Dice, means of an epoch, a text log, a picture."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echoplan import layout
from echoplan.files import plain, write_text
from echoplan.labels import IGNORE

from .progress_picture import draw_progress

logger = logging.getLogger("echoplan.training")
_SMOOTHING = 0.9  # of the validation Dice over the epochs
_PICTURE_EVERY_SECONDS = 15  # drawing takes half a second: too much for every epoch of a short training


class TrainingLog:
    """The log of one fold.

    Args:
        folder: the fold's folder.
        writes: False keeps silent, for processes that only help.
    """

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        self.folder = folder
        self.writes = writes
        self.history: list[dict[str, Any]] = []
        self._drawn = time.monotonic()  # the first picture of a short training is its last, too
        self._handler: logging.Handler = logging.NullHandler()

    def open(self, *, first_epoch: int = 0) -> None:
        """Begin a text log; metrics of `first_epoch` and later ones are dropped: they are about to be made again."""
        if not self.writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / layout.METRICS_FILE
        self.history = [entry for entry in read_metrics(self.folder) if entry["epoch"] < first_epoch]
        if self.history or file.exists():
            write_text(file, "".join(json.dumps(plain(entry)) + "\n" for entry in self.history))
        log = self.folder / f"training_log_{datetime.now():%Y_%m_%d_%H_%M_%S}.txt"
        self._handler = logging.FileHandler(log, encoding="utf-8")
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(self._handler)
        logger.setLevel(logging.INFO)

    def say(self, text: str) -> None:
        """One line in the log file (and wherever the caller's logging leads)."""
        if self.writes:
            logger.info(text)

    def epoch(self, **metrics: Any) -> None:
        """Append one epoch's metrics; "epoch" is among them."""
        if not self.writes:
            return
        self.history.append(metrics)
        with open(self.folder / layout.METRICS_FILE, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(plain(metrics)) + "\n")
        if time.monotonic() - self._drawn > _PICTURE_EVERY_SECONDS:
            self.draw()

    def draw(self) -> None:
        """Draw progress.png: loss, Dice, learning rate and seconds over the epochs; nothing where there are none."""
        if self.history:
            self._drawn = time.monotonic()
            draw_progress(self.folder, self.history)

    def close(self) -> None:
        """Close the file."""
        logger.removeHandler(self._handler)
        self._handler.close()


def epochs_since_best(history: Sequence[Mapping[str, Any]], keep: str) -> int:
    """How many epochs ended since the best one, by the measure of a recipe's `keep_epoch`.

    An epoch that cannot be judged counts as none better. Where none can be judged, none has been waited for.
    """
    name, sign = {"lowest_loss": ("val_loss", -1), "best_dice": ("val_dice", 1)}.get(keep, ("val_dice_smooth", 1))
    scores = [-math.inf if entry.get(name) is None else sign * entry[name] for entry in history]
    best = max(scores, default=-math.inf)
    return 0 if best == -math.inf else len(scores) - 1 - scores.index(best)


class MetricAverager:
    """Means over an epoch of what a method records at its steps."""

    def __init__(self) -> None:
        self._values: dict[str, list[float | Tensor]] = {}

    def add(self, **values: float | Tensor) -> None:
        """Add one step's values; a NaN says that a step had none. Tensors are read at the epoch's end, not now."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(value.detach() if isinstance(value, Tensor) else value)

    def take(self) -> dict[str, float | None]:
        """The means (None where no step had a value), and start again."""
        given = {name: [value for value in values if not math.isnan(value)] for name, values in self.state().items()}
        self._values = {}
        return {name: sum(values) / len(values) if values else None for name, values in given.items()}

    def state(self) -> dict[str, list[float]]:
        """What a checkpoint keeps of an epoch that is not over."""
        return {name: as_numbers(values) for name, values in self._values.items()}

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """Put back what `state` gave."""
        self._values = {name: list(values) for name, values in state.items()}


def as_numbers(values: Sequence[float | Tensor]) -> list[float]:
    """Numbers, and tensors of one, as numbers; tensors of one device are fetched from it at once."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    fetched = iter(torch.stack([tensor.double().reshape(()) for tensor in tensors]).tolist() if tensors else ())
    return [next(fetched) if isinstance(value, Tensor) else float(value) for value in values]


class BestEpoch:
    """Which epoch is the best so far: the one that checkpoint_best.pth holds.

    Args:
        keep: the recipe's `keep_epoch`. With "last" the final weights are the last epoch's, and the best epoch that of
            the highest validation Dice smoothed over the epochs, since single ones are noisy.

    Attributes:
        score: the best one so far, the higher the better: a Dice, or a loss with its sign turned.
        smooth_dice: of the last whole epoch; None before the first one.
    """

    def __init__(self, keep: str) -> None:
        self.keep = keep
        self.score = -math.inf
        self.smooth_dice: float | None = None

    def update(self, dice: float | None, loss: float | None) -> bool:
        """Whether the epoch with this validation Dice and loss is better than all before it."""
        if dice is not None:
            before = dice if self.smooth_dice is None else self.smooth_dice
            self.smooth_dice = _SMOOTHING * before + (1 - _SMOOTHING) * dice
        if self.keep == "lowest_loss":
            score = None if loss is None else -loss
        else:
            score = dice if self.keep == "best_dice" else self.smooth_dice
        better = score is not None and score > self.score
        self.score = score if score is not None and better else self.score
        return better

    @property
    def found(self) -> bool:
        """Whether there is one: nothing can be better where no validation sample has a label."""
        return self.score > -math.inf

    def __str__(self) -> str:
        """For the log."""
        if not self.found:
            return "no validation labels to choose an epoch by"
        words = {"last": "highest smoothed validation Dice", "best_dice": "highest validation Dice"}
        return f"{words.get(self.keep, 'lowest validation loss')} {abs(self.score):.4f}"


class OnlineDice:
    """Collects Dice over batches; on a GPU nobody waits for them before they are asked for.

    Args:
        classes: K of the network's logits; 1 is one structure by sigmoid.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._dice: list[Tensor] = []  # of each frame and structure, NaN where no pixel of the frame is labelled
        self._datasets: list[str] = []  # of each of these

    def add(self, logits: Tensor, labels: Tensor, datasets: Sequence[str]) -> None:
        """Add a batch: logits (B, T, K, H, W), labels (B, T, H, W), B source datasets; pixels of 255 do not count."""
        predicted = (logits[:, :, 0] > 0).long() if self.classes == 1 else logits.argmax(dim=2)
        counts_in = labels != IGNORE
        labelled = counts_in.flatten(2).any(dim=2)
        for value in range(1, max(self.classes, 2)):
            mask = ((predicted == value) & counts_in).flatten(2).float()
            truth = ((labels == value) & counts_in).flatten(2).float()
            size = mask.sum(2) + truth.sum(2)
            # An empty structure that is found empty is right.
            dice = torch.where(size > 0, 2 * (mask * truth).sum(2) / size.clamp(min=1), 1.0)
            self._dice.append(torch.where(labelled, dice, math.nan).flatten())
            self._datasets += [name for name in datasets for _ in range(labels.shape[1])]

    def by_dataset(self) -> dict[str, float]:
        """The mean over frames and structures for each source dataset that has any."""
        values: dict[str, list[float]] = {}
        dice = torch.cat(self._dice).tolist() if self._dice else []
        for name, value in zip(self._datasets, dice, strict=True):
            if not math.isnan(value):
                values.setdefault(name, []).append(value)
        return {name: sum(own) / len(own) for name, own in values.items()}

    def mean(self) -> float | None:
        """The mean over frames and structures, then over datasets; None before anything was added."""
        return mean_over_datasets(self.by_dataset())


def mean_over_datasets(dice: Mapping[str, float]) -> float | None:
    """The mean of `by_dataset`; None where there is none."""
    return sum(dice.values()) / len(dice) if dice else None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line cut short by a crash is left out."""
    path = folder / layout.METRICS_FILE
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries
