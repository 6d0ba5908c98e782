"""torch.compile where it works, and the network as it is where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import nn

from echoplan.device import is_out_of_memory

_COMPILERS = ("torch._inductor", "triton")


class CompiledModel:
    """Calls a model compiled; if the compiler fails, says so once and calls it plainly from then on.

    Args:
        model: the network, or what wraps it.
        say: takes the warning.
        backend: torch.compile's.
    """

    def __init__(self, model: nn.Module, say: Callable[[str], None], *, backend: str | Callable[..., Any] = "inductor"):
        from torch._dynamo.exc import TorchDynamoException  # takes two seconds, which only those pay who compile

        self._failure = TorchDynamoException
        self._model = model
        self._say = say
        self._compiled: Callable[..., Any] | None = torch.compile(model, backend=backend)

    def __call__(self, *inputs: Any) -> Any:
        """The model's output."""
        if self._compiled is None:
            return self._model(*inputs)
        try:
            return self._compiled(*inputs)
        except self._failure as error:
            self.give_up(error)
            return self._model(*inputs)

    def give_up(self, error: BaseException) -> bool:
        """Call the model plainly from now on, if an error of a backward pass is the compiler's.

        A gradient is compiled when it is first needed, long after the call.

        Returns:
            whether it is, so that the step can be taken again.
        """
        if self._compiled is None or is_out_of_memory(error):
            return False
        if not isinstance(error, self._failure) and not any(_compiles(frame) for frame in _frames(error)):
            return False
        self._compiled = None
        reason = str(error).strip().partition("\n")[0]
        self._say(f"warning: torch.compile failed ({reason}); training goes on without it")
        return True


def _frames(error: BaseException) -> Iterator[FrameType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _compiles(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__", "").startswith(_COMPILERS)
