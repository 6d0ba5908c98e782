"""Entropy-guided attention as its equations stand, with the whole N x N map; and what memory a computation takes."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from torch.profiler import ProfilerActivity, profile

EPSILON, LEAST_CERTAINTY = 1e-12, 1e-6
QUERY_EPSILON, LEAST_QUERY_CERTAINTY = 1e-8, 1e-3


def entropy_guided_attention_plain(
    q: Tensor, k: Tensor, v: Tensor, *, attention: str = "ega", keep: Tensor | int | None = None
) -> tuple[Tensor, Tensor]:
    """Equations 1 to 4: ``(B, N, d)`` three times -> output ``(B, N, d)`` and entropy ``(B, N)`` over ln N.

    `keep` is how many scores a row "topk" keeps, or which keys "mask" keeps, 0 or 1, ``(B, N)``.
    """
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    logarithm = scores.log_softmax(dim=2)
    full = logarithm.exp()
    entropy = -(full * logarithm).sum(dim=2) / math.log(q.shape[1])
    certainty = (1 - entropy).clamp_min(LEAST_CERTAINTY if attention == "ega" else LEAST_QUERY_CERTAINTY)
    if attention == "ega":
        weighted = full * certainty[:, None, :]
        return weighted / (weighted.sum(dim=2, keepdim=True) + EPSILON) @ v, entropy
    if attention == "ega_query":
        weighted = full * certainty[:, :, None]
        return weighted / (weighted.sum(dim=2, keepdim=True) + QUERY_EPSILON) @ v, entropy
    if attention == "ega_column":
        weighted = full * certainty[:, :, None]
        return weighted / (weighted.sum(dim=1, keepdim=True) + QUERY_EPSILON) @ v, entropy
    if attention == "topk":
        order = scores.argsort(dim=2, descending=True).argsort(dim=2)
        return scores.masked_fill(order >= keep, -math.inf).softmax(dim=2) @ v, entropy
    if attention == "mask":
        weighted = full * keep[:, None, :]
        return weighted / (weighted.sum(dim=2, keepdim=True) + EPSILON) @ v, entropy
    return full @ v, entropy


def peak_bytes(function: Callable[[], object]) -> int:
    """The most memory on the CPU that a computation holds at a time, beyond what was held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    moments = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    held = peak = 0
    for moment in moments:
        held += moment["args"]["Bytes"]
        peak = max(peak, held)
    return peak
