"""Networks that walk through a clip, in files of their own: an encoder and what it feeds, with explicit state."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from echoplan.errors import EchoPlanError
from echoplan.networks.interface import StreamingNetwork
from echoplan.networks.steps import Graph, SteppingNetwork

from .graphs import labels_of, normalised


def check_exact(network: nn.Module) -> None:
    """Stop at a network whose answer no ONNX graph gives.

    Raises:
        EchoPlanError: it is such a network; the message says why.
    """
    why = getattr(network, "why_no_graph", None)
    if why is None and isinstance(network, StreamingNetwork) and not isinstance(network, SteppingNetwork):
        why = "its walk through a clip is not taken apart into graphs"
    if why is not None:
        raise EchoPlanError(
            f"{type(network).__name__} has no exact form in ONNX: {why}",
            remedy="predict with PyTorch (--backend torch)",
        )


class FromBytes(nn.Module):
    """An encoder that takes a frame's bytes ``(1, H, W)`` on its grid, and the clip's mean and SD ``(2,)``.

    Args:
        encoder: the "encoder" of a network's graphs.
        normalisation: see `preprocessing.normalise`.
    """

    def __init__(self, encoder: nn.Module, normalisation: str) -> None:
        super().__init__()
        self.encoder, self.normalisation = encoder, normalisation

    def forward(self, frames: Tensor, statistics: Tensor | None = None) -> tuple[Tensor, ...]:
        """What the encoder gives."""
        return self.encoder(normalised(frames.float(), self.normalisation, statistics)[:, None])


class ToMasks(nn.Module):
    """A graph whose first output are logits ``(1, K, H, W)``, with masks and probabilities in their place."""

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step = step

    def forward(self, *told: Tensor) -> tuple[Tensor, ...]:
        """Masks uint8 ``(1, H, W)``, probabilities ``(K, 1, H, W)``, and the graph's other outputs."""
        logits, *state = self.step(*told)
        probabilities = logits.sigmoid().transpose(0, 1)  # all of these networks find one structure
        return labels_of(probabilities), probabilities, *state


def deployed(graphs: Mapping[str, Graph], normalisation: str, statistics: Mapping[str, Tensor]) -> dict[str, Graph]:
    """A network's graphs with bytes in and masks out.

    Args:
        graphs: of `SteppingNetwork.graphs`.
        normalisation: of the frames.
        statistics: "statistics" and an example, where the normalisation reads them.
    """
    made = {}
    for name, graph in graphs.items():
        if name == "encoder":
            frames = graph.inputs["frames"][:, 0].byte()
            module: nn.Module = FromBytes(graph.module, normalisation)
            made[name] = Graph(module, {"frames": frames, **statistics}, graph.outputs, graph.free)
        elif graph.outputs[0] == "logits":
            outputs = ["masks", "probabilities", *graph.outputs[1:]]
            made[name] = Graph(ToMasks(graph.module), graph.inputs, outputs, graph.free)
        else:
            made[name] = graph
    return made
