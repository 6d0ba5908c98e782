"""A network in another runtime's hands: the place of the PyTorch module that it was exported from."""

from __future__ import annotations

import hashlib
import inspect
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from echoplan import __version__, layout
from echoplan.device import choose_device
from echoplan.errors import EchoPlanError
from echoplan.networks.interface import StreamedFrames
from echoplan.networks.steps import Graph, SteppingNetwork
from echoplan.networks.weights import weights_digest

from .graphs import as_probabilities
from .onnx_file import OPSET, write_onnx
from .runtimes import RUNTIMES, OnnxRuntime, Runtime
from .steps import check_exact

logger = logging.getLogger(__name__)

TORCH = "torch"
BACKENDS = (TORCH, *RUNTIMES)
TOLERANCE = 1e-3  # of probabilities; float32 sums in another order differ by a hundredth of that

_FRAMES_AT_ONCE = 4  # few lengths, so that OpenVINO compiles few shapes


class ExportedNetwork(nn.Module):
    """What a network gives in evaluation mode, computed by ONNX Runtime or OpenVINO.

    Args:
        runtime: of the network's file.
        weights: the network's `digest_of_weights`.
        framewise: whether the network sees each frame by itself.

    Attributes:
        input_normalisation: what `normalisation_for` reads.
    """

    input_normalisation: str | None = None

    def __init__(self, runtime: Runtime, *, weights: str, framewise: bool) -> None:
        super().__init__()
        self.weights, self._runtime, self._framewise = weights, runtime, framewise

    def forward(self, clip: Tensor) -> Tensor:
        """``(B, T, 1, H, W)`` -> logits ``(B, T, K, H, W)``; in bfloat16 under autocast, where the runtime has it."""
        if self._framewise:
            parts = clip.flatten(0, 1).unsqueeze(1).split(_FRAMES_AT_ONCE)
            return torch.cat([self._run(part) for part in parts]).unflatten(0, clip.shape[:2]).squeeze(2)
        return torch.cat([self._run(window) for window in clip.split(1)])

    def _run(self, clip: Tensor) -> Tensor:
        fast = torch.is_autocast_enabled(clip.device.type)
        return torch.from_numpy(self._runtime({"clip": clip.cpu().numpy()}, fast=fast)["logits"]).to(clip.device)


class ExportedStream(nn.Module):
    """A `SteppingNetwork` whose graphs other runtimes compute.

    Args:
        network: its rules.
        runtimes: by graph.
        weights: the network's `digest_of_weights`.

    Attributes:
        input_normalisation: what `normalisation_for` reads.
    """

    input_normalisation: str | None = None

    def __init__(self, network: SteppingNetwork, runtimes: Mapping[str, Runtime], *, weights: str) -> None:
        super().__init__()
        self.weights, self._walk, self._runtimes = weights, network.walk, runtimes

    def stream(self, frames: StreamedFrames) -> Iterator[tuple[int, Tensor]]:
        """See `StreamingNetwork.stream`."""
        return self._walk(frames, self._run)

    def forward(self, clip: Tensor) -> Tensor:
        """``(B, T, 1, H, W)`` -> logits ``(B, T, K, H, W)``."""
        walks = [dict(self.stream(frames)) for frames in clip]
        return torch.stack([torch.stack([walk[index] for index in range(clip.shape[1])]) for walk in walks])

    def _run(self, name: str, told: dict[str, Tensor]) -> tuple[Tensor, ...]:
        device = next(iter(told.values())).device
        arrays = {key: values.cpu().numpy() for key, values in told.items()}
        found = self._runtimes[name](arrays, fast=torch.is_autocast_enabled(device.type))
        return tuple(torch.from_numpy(values).to(device) for values in found.values())


def digest_of_weights(network: nn.Module) -> str:
    """A short name for a network's parameters and buffers, the same on every device, machine and runtime."""
    if isinstance(network, ExportedNetwork | ExportedStream):
        return network.weights
    return weights_digest(network.state_dict())


def device_of(backend: str, name: str) -> torch.device:
    """The device called `name` as a backend has it; "auto" takes a GPU where the backend can.

    Raises:
        EchoPlanError: no such backend, or no such device.
    """
    if backend not in BACKENDS:
        raise EchoPlanError(f"no backend {backend!r}", remedy=f"choose one of {', '.join(BACKENDS)}")
    if name != "auto" or backend == TORCH:
        return choose_device(name)
    return torch.device("cuda" if RUNTIMES[backend] is OnnxRuntime and OnnxRuntime.has_cuda() else "cpu")


def hand_over(
    network: nn.Module, checkpoint: Path, *, backend: str, device: torch.device, size: tuple[int, int], framewise: bool
) -> nn.Module:
    """A network as another backend runs it; with "torch" it stays what it is.

    Its ONNX file lies beside the checkpoint and is written when it is first asked for. Its name has a digest of the
    checkpoint and of the code that the network is built by: a file of other weights is never taken.

    Args:
        network: in evaluation mode, on the CPU unless the backend is "torch".
        checkpoint: that it was filled from.
        backend: one of `BACKENDS`.
        device: where to run.
        size: (H, W) of its input.
        framewise: whether it is given each frame by itself.

    Raises:
        EchoPlanError: the backend is not installed, or the network cannot be exported to give the same answers.
    """
    if backend == TORCH:
        return network
    check_exact(network)
    weights = digest_of_weights(network)

    def open_files(files: Mapping[str, Path]) -> nn.Module:
        runtimes = {name: RUNTIMES[backend](file, device) for name, file in files.items()}
        exported: ExportedNetwork | ExportedStream
        if isinstance(network, SteppingNetwork):
            exported = ExportedStream(network, runtimes, weights=weights)
        else:
            exported = ExportedNetwork(runtimes["network"], weights=weights, framewise=framewise)
        exported.input_normalisation = getattr(network, "input_normalisation", None)
        return exported

    graphs = _graphs(network, size=size, framewise=framewise)
    code = _key(checkpoint, graphs)
    files = {name: layout.exported_network_file(checkpoint, f"{code}.{name}") for name in graphs}
    if all(file.is_file() for file in files.values()):
        return open_files(files)
    logger.info("exporting %s to ONNX, once", type(network).__name__)
    files = _write_beside(graphs, files)
    try:
        exported = open_files(files)
        compare(network, exported, size=size, lengths=[(1, 1), (5, 1) if framewise else (1, 5)])
    except Exception as error:  # runtimes raise their own kinds; what failed must not lie there for the next run
        for file in files.values():
            file.unlink(missing_ok=True)
        raise error if isinstance(error, EchoPlanError) else not_run(backend, error) from error
    return exported


def _graphs(network: nn.Module, *, size: tuple[int, int], framewise: bool) -> dict[str, Graph]:
    """A network's own graphs, or the one that it is."""
    if isinstance(network, SteppingNetwork):
        return network.graphs(size)
    frames, axis = (1, {0: "frames"}) if framewise else (2, {1: "frames"})
    clip = torch.zeros(1, frames, 1, *size)
    return {"network": Graph(network, {"clip": clip}, ["logits"], {"clip": axis, "logits": axis})}


def not_run(backend: str, error: Exception) -> EchoPlanError:
    """What a runtime's own error means."""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return EchoPlanError(f"{backend} cannot run the exported network: {reason}", remedy="predict with PyTorch")


@torch.no_grad()
def compare(
    network: nn.Module, exported: nn.Module, *, size: tuple[int, int], lengths: Sequence[tuple[int, int]]
) -> None:
    """See that two networks give the same probabilities for noise of so many (clips, frames).

    Raises:
        EchoPlanError: they do not.
    """
    chance = torch.Generator().manual_seed(0)
    for clips, frames in lengths:
        clip = torch.randn(clips, frames, 1, *size, generator=chance)
        ours, theirs = (as_probabilities(run(clip), axis=2) for run in (network, exported))
        difference = float((ours - theirs).abs().max())
        if not difference <= TOLERANCE:
            raise EchoPlanError(
                f"the exported network's probabilities differ from PyTorch's by up to {difference:.2g} in {clips} x "
                f"{frames} frames",
                remedy="predict with PyTorch (--backend torch)",
            )


def _key(checkpoint: Path, graphs: Mapping[str, Graph]) -> str:
    """Of a checkpoint and of what makes graphs of it: the files of all modules in them."""
    digest = hashlib.sha256(f"{__version__} {torch.__version__} {OPSET}".encode())
    digest.update(checkpoint.read_bytes())
    kinds = {type(module) for graph in graphs.values() for module in graph.module.modules()}
    for code in sorted({_code_of(kind) for kind in kinds}):
        digest.update(code)
    return digest.hexdigest()[:16]


def _code_of(kind: type) -> bytes:
    """What stands in a class's file, or its name where it has none."""
    try:
        return Path(inspect.getfile(kind)).read_bytes()
    except (TypeError, OSError):
        return kind.__qualname__.encode()


def _write_beside(graphs: Mapping[str, Graph], files: Mapping[str, Path]) -> dict[str, Path]:
    """Write graphs, in place of those of earlier checkpoints; where none may be written, into a temporary folder."""
    written = dict(files)
    for name, graph in graphs.items():
        try:
            write_onnx(graph, written[name], {"echoplan": __version__})
        except OSError:
            written[name] = _temporary_folder() / written[name].name
            write_onnx(graph, written[name], {"echoplan": __version__})
    for other in layout.exported_network_files(next(iter(written.values()))):
        if other not in written.values():
            other.unlink(missing_ok=True)
    return written


@cache
def _temporary_folder() -> Path:
    """Of this process, removed when it ends."""
    folder = tempfile.TemporaryDirectory(prefix="echoplan_")
    _kept.append(folder)
    return Path(folder.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []
