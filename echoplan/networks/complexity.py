"""How large a network is, what of it learns, and what a clip costs."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn


def count_parameters(network: nn.Module, *, trainable_only: bool = False) -> int:
    """Number of parameters (buffers such as running means are not counted)."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad or not trainable_only)


def count_gmac(network: nn.Module, clip_shape: tuple[int, int, int, int, int]) -> float:
    """Multiply-accumulates, in 1e9, of one forward pass in evaluation mode.

    Convolutions, matrix products and attention are counted; element-wise work is not. This is what the papers call
    "GFLOPs". It is counted by running a clip of zeros where the network's parameters lie; a network moved to the
    ``meta`` device is counted without computing anything.

    Args:
        network: takes a clip ``(B, T, C, H, W)``; its mode and what learns are put back afterwards.
        clip_shape: that shape, for instance ``(1, 10, 1, 256, 256)``.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton, half a second

    # PyTorch's counter knows every kernel of attention but the processor's.
    mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop}
    clip = torch.zeros(clip_shape, device=next(network.parameters()).device)
    was_training, learning = network.training, [p for p in network.parameters() if p.requires_grad]
    network.eval()
    # The counter's hooks cannot stand a parameter that is passed to a module while gradients are off.
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            network(clip)
    finally:
        network.train(was_training)
        for parameter in learning:
            parameter.requires_grad_(True)
    return counter.get_total_flops() / 2 / 1e9


@torch.inference_mode()
def seconds_of(network: nn.Module, clip: Tensor, *, least: float = 2.0) -> float:
    """Seconds of a forward pass: the mean over at least `least` seconds, after a first pass that does not count.

    Args:
        network: as it is to be timed, on the clip's device.
        clip: what it takes.
        least: how long to go on.
    """

    def now() -> float:
        if clip.device.type == "cuda":
            torch.cuda.synchronize(clip.device)
        return time.perf_counter()

    network(clip)
    started, passes, passed = now(), 0, 0.0
    while not passes or passed < least:
        network(clip)
        passes, passed = passes + 1, now() - started
    return passed / passes


def _attention_flop(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    from torch.utils.flop_counter import sdpa_flop_count

    return sdpa_flop_count(query, key, value)


def learning_parts(network: nn.Module) -> dict[str, tuple[int, int]]:
    """Of each of a network's parts with parameters: how many learn, and how many there are."""
    counts = {
        name: (count_parameters(part, trainable_only=True), count_parameters(part))
        for name, part in network.named_children()
    }
    return {name: count for name, count in counts.items() if count[1]}


def describe_learning(network: nn.Module) -> str:
    """`learning_parts` in one line, for a log."""
    learning, total = count_parameters(network, trainable_only=True), count_parameters(network)
    parts = ", ".join(f"{name} {some:,} of {every:,}" for name, (some, every) in learning_parts(network).items())
    return f"parameters that learn: {learning:,} of {total:,}, {total - learning:,} frozen ({parts})"
