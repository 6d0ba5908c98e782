"""What learns in a network, and what stays as it is."""

from __future__ import annotations

from torch import nn

from echoplan.networks.complexity import count_parameters


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
