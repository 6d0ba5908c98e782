"""Networks taken apart into graphs without control flow, each of which another runtime can hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from echoplan.networks.interface import StreamedFrames

Run = Callable[[str, dict[str, Tensor]], tuple[Tensor, ...]]  # the outputs of the graph of that name


@dataclass(frozen=True)
class Graph:
    """What becomes one file.

    Attributes:
        module: computes it, in evaluation mode.
        inputs: name -> an example.
        outputs: their names.
        free: input or output -> its axes that may have any length, with a name for each.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    free: Mapping[str, Mapping[int, str]]


@runtime_checkable
class SteppingNetwork(Protocol):
    """A `StreamingNetwork` whose walk is graphs, and rules for what one hands to the next."""

    def graphs(self, size: tuple[int, int]) -> dict[str, Graph]:
        """Name -> graph for frames of `size`: "encoder", which takes a frame, and those that it feeds.

        Raises:
            EchoPlanError: the network's settings make it one that has none.
        """
        ...

    def walk(self, frames: StreamedFrames, run: Run) -> Iterator[tuple[int, Tensor]]:
        """What `StreamingNetwork.stream` gives, by the graphs alone, which `run` computes."""
        ...

    def program(self) -> list[str]:
        """`walk` as lines of NumPy.

        They find uint8 `frames` (T, H, W), `run(graph, **inputs)`, which gives a list of outputs, of the encoder for
        `frames` (1, H, W), and of others with masks and probabilities in the place of logits. They leave `masks`.
        """
        ...
