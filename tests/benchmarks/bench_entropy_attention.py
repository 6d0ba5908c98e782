"""Time and memory of entropy-guided attention at E3SAM2's first stage.

Three forms: the equations as they stand, with the whole N x N map; EchoPlan's, which makes no map; and as the floor
plain attention by PyTorch's fused kernel, which knows no entropy.

python tests/benchmarks/bench_entropy_attention.py [--tokens N] [--threads N] [--repeats N] [--device cpu|cuda]
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "networks"))

from plain_attention import entropy_guided_attention_plain, peak_bytes

from echoplan.networks.e3sam2.attention import attention, row_entropy, weighted_attention

CHANNELS = 96
Form = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]


def without_map(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    entropy = row_entropy(q, k) / math.log(k.shape[1])
    return weighted_attention(partial(attention, q, k), v, (1 - entropy).clamp_min(1e-6).unsqueeze(2)), entropy


def fused(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
    return (attention(q, k, v),)


FORMS: dict[str, Form] = {"N x N map": entropy_guided_attention_plain, "EchoPlan": without_map, "plain fused": fused}


def forward(form: Form, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return form(*inputs)


def training_step(form: Form, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(sum(result.square().mean() for result in form(*inputs)), inputs)


def milliseconds(works: list[Callable[[], object]], repeats: int, cuda: bool) -> list[float]:
    """The quickest of some runs of each, taken in turns, so that a busy moment of the machine hits all."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(repeats + 1):
        for work, taken in zip(works, seconds, strict=True):
            start = time.perf_counter()
            work()
            if cuda:
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
    return [1000 * min(taken[1:]) for taken in seconds]


def peak_mebibytes(work: Callable[[], object], cuda: bool) -> float:
    """What the work takes beyond its inputs."""
    if not cuda:
        return peak_bytes(work) / 2**20
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    cuda = options.device.startswith("cuda")
    print(
        f"{options.tokens} tokens of {CHANNELS} channels, float32, {options.device}, {options.threads} threads, "
        f"torch {torch.__version__}; ratios are to plain fused attention"
    )
    print(f"{'frames':>6}  {'work':<18}{'form':<13}{'ms':>8}{'ratio':>7}{'peak MiB':>10}{'ratio':>7}")
    for frames in (1, 2):
        inputs = [
            torch.randn(frames, options.tokens, CHANNELS, device=options.device, requires_grad=True) for _ in range(3)
        ]
        for name, run in (("forward", forward), ("forward, backward", training_step)):
            works = [partial(run, form, inputs) for form in FORMS.values()]
            times = milliseconds(works, options.repeats, cuda)
            peaks = [peak_mebibytes(work, cuda) for work in works]
            for form, taken, peak in zip(FORMS, times, peaks, strict=True):
                print(
                    f"{frames:>6}  {name:<18}{form:<13}{taken:>8.0f}{taken / times[-1]:>7.2f}"
                    f"{peak:>10.1f}{peak / peaks[-1]:>7.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
