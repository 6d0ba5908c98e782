"""Prediction on a Ray cluster: workers that hold the model write a clip's files themselves, and tell how it went.

Files are written beside their name and then moved into place, so that a clip done twice does no harm.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from echoplan.cluster import connected
from echoplan.cluster_map import ClusterMap
from echoplan.inputs import InputClip
from echoplan.parallel_map import CaseResults

from .pipeline import find_in_clips, finish_clip, prepare_clip
from .predict_folder import sweep_results
from .predictor import EchoPredictor

_CLIPS_AT_ONCE = 3  # in a worker: one is decoded, one is in the network, one is written


class ClipWorker:
    """Predicts clips in a process of its own, on any node; the model is loaded once. Several calls run at once.

    Args:
        models: how the predictor is made: arguments of `EchoPredictor.from_model_folders`, the device left out.
        device: where the networks run.
        out: the results' folder, absolute.
        keep_probabilities: also write the class probabilities.
    """

    def __init__(self, models: Mapping[str, Any], device: str, out: Path, keep_probabilities: bool) -> None:
        sweep_results(out)  # of workers on this node that died
        self.device, self.out, self.keep_probabilities = device, out, keep_probabilities
        self.predictor = EchoPredictor.from_model_folders(**models, device=device)
        self.network = threading.Lock()

    def __call__(self, item: InputClip) -> None:
        """Predict a clip and write what comes of it."""
        try:
            prepared = prepare_clip(item, self.predictor)
            with self.network:
                (found,) = find_in_clips([(item, prepared)], self.predictor, self.keep_probabilities)
            finish_clip(item, self.predictor, prepared, found, self.out)
        except Exception:
            _leave_if_gpu_is_lost(self.device)
            raise


def _leave_if_gpu_is_lost(device: str) -> None:
    """End the process if its GPU answers no more: only a new one can use it again."""
    if device == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(1)


@dataclass(frozen=True)
class RayEngine:
    """Predicts on a Ray cluster.

    Attributes:
        models: as in `ClipWorker`.
        device: "auto" (GPUs where the cluster has any), "cuda" or "cpu".
        address: as `connected` takes it.
        actors: how many workers; None: as many as the cluster has room for.
        cpus_per_actor: cores of each, its network's threads where it has no GPU.
    """

    models: Mapping[str, Any]
    device: str = "auto"
    address: str | None = None
    actors: int | None = None
    cpus_per_actor: int = 1

    def predict(self, todo: Sequence[InputClip], source: Path, out: Path, *, keep_probabilities: bool) -> CaseResults:
        """Write the results of the clips in `todo` to `out`.

        Raises:
            EchoPlanError: Ray is not installed or no cluster answers, no node has what an actor takes, a node does not
                see the files, or a full disk.
            Terminated: SIGTERM came.
        """
        out = out.absolute()
        folders = [Path(folder) for folder, _ in self.models["folders"]]
        with connected(self.address) as cluster:
            device = cluster.device(self.device)
            need = {"CPU": float(self.cpus_per_actor), **({"GPU": 1.0} if device == "cuda" else {})}
            workers = max(1, min(self.actors or cluster.room(need), len(todo)))
            read = (source.absolute(), *folders)
            run_cases = ClusterMap(cluster, need, out, read, workers, cases_at_once=_CLIPS_AT_ONCE)
            arguments = {item.name: (replace(item, path=item.path.absolute()),) for item in todo}
            setup = (self.models, device, out, keep_probabilities)
            results = run_cases(ClipWorker, arguments, setup=setup, description="predicting")
        paths = {item.name: item.path for item in todo}  # as the user wrote them
        failures = {
            case: reason.replace(str(paths[case].absolute()), str(paths[case]))
            for case, reason in results.failures.items()
        }
        return CaseResults(results.done, failures)
