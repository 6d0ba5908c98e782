"""torch.compile where it works, and the network as it is where it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


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
            self._compiled = None
            reason = str(error).strip().partition("\n")[0]
            self._say(f"warning: torch.compile failed ({reason}); training goes on without it")
            return self._model(*inputs)
