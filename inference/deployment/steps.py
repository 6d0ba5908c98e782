"""Which networks ONNX can hold, and why not the others."""

from __future__ import annotations

from torch import nn

from echoplan.errors import EchoPlanError
from echoplan.networks.interface import StreamingNetwork


def check_exact(network: nn.Module) -> None:
    """Stop at a network whose answer no ONNX graph gives.

    Raises:
        EchoPlanError: it is such a network; the message says why.
    """
    why = getattr(network, "why_no_graph", None)
    if why is None and isinstance(network, StreamingNetwork):
        why = "it goes through a clip by rules of its own, which no single graph holds"
    if why is not None:
        raise EchoPlanError(
            f"{type(network).__name__} has no exact form in ONNX: {why}",
            remedy="predict with PyTorch (--backend torch)",
        )
