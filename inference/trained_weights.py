"""Which weights a choice or a calibration was made with: a digest a fold, and which folds have others since."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from ..training.model_folder import ModelFolder

UNKNOWN_WEIGHTS = "does not say of which weights it is, so that nothing tells whether a fold was trained again since"
Weights = Mapping[str, Mapping[int, str]]  # model folder's name -> fold -> digest of its final checkpoint's weights


def weights_of(models: Iterable[Path], folds: Collection[int] | None = None) -> dict[str, dict[int, str]]:
    """The weights that models have now; no code of theirs runs.

    Args:
        models: model folders.
        folds: only these; None: all. What is not trained to its end is left out.

    Raises:
        EchoPlanError: a checkpoint cannot be read.
    """
    weights = {}
    for path in models:
        model = ModelFolder.read(path)
        weights[path.name] = {
            fold: model.weights_digest(fold) for fold in model.folds() if folds is None or fold in folds
        }
    return weights


def read_weights(content: Mapping[str, Mapping[str, str]]) -> dict[str, dict[int, str]]:
    """What a JSON file holds of weights, its folds numbers again; KeyError and the like where it is something else."""
    return {str(model): {int(fold): str(digest) for fold, digest in own.items()} for model, own in content.items()}


def trained_again(before: Weights, now: Weights) -> str:
    """Which folds have other weights now, in words; empty where none has. A fold that either lacks is not compared.

    Example:
        >>> trained_again({"UNetTrainer": {0: "a", 1: "b"}}, {"UNetTrainer": {0: "c", 1: "b", 2: "d"}})
        'fold 0 of UNetTrainer was trained again since'
    """
    changed = {
        model: [fold for fold, digest in sorted(own.items()) if digest != now.get(model, {}).get(fold, digest)]
        for model, own in before.items()
    }
    words = " and ".join(
        f"fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))} of {model}"
        for model, folds in changed.items()
        if folds
    )
    return words and f"{words} {'was' if sum(map(len, changed.values())) == 1 else 'were'} trained again since"
