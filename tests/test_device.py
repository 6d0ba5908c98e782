"""Which device is taken, and what this process does with it."""

from __future__ import annotations

import logging
import os
from types import SimpleNamespace

import pytest
import torch

from echoplan.device import choose_device, is_out_of_memory, prepare_device, reproducible
from echoplan.errors import EchoPlanError
from echoplan.options.parser import parser
from echoplan.options.shared import add_device

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
UNSUPPORTED = "CUDA error: no kernel image is available for execution on the device\nCompile with ..."


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Two GPUs, on which `broken` says what the first kernel does."""
    made = SimpleNamespace(broken=None, current=[], tried=[])

    def ones(*_: int, device: torch.device) -> torch.Tensor:
        made.tried.append(str(device))
        if made.broken is not None:
            raise RuntimeError(made.broken)
        return torch.zeros(8)

    patches = {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "set_device": made.current.append,
        "get_arch_list": lambda: ["sm_75", "sm_80"],
        "get_device_properties": lambda _: SimpleNamespace(name="Tesla V100", major=7, minor=0),
    }
    for name, patch in patches.items():
        monkeypatch.setattr(torch.cuda, name, patch)
    monkeypatch.setattr(torch, "ones", ones)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    return made


def test_auto_takes_a_gpu_on_which_a_kernel_has_run(gpus: SimpleNamespace) -> None:
    assert choose_device("auto") == torch.device("cuda") and gpus.tried == ["cuda"] and gpus.current == []


def test_auto_passes_over_a_gpu_that_pytorch_does_not_support(
    gpus: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    gpus.broken = UNSUPPORTED
    with caplog.at_level(logging.WARNING):
        assert choose_device("auto") == CPU
    assert "the GPU Tesla V100 (sm_70; PyTorch" in caplog.text and "is built for sm_75 sm_80) cannot be used: " in (
        caplog.text
    )
    with pytest.raises(EchoPlanError, match=r"Tesla V100.*no kernel image is available for execution on the device"):
        choose_device("cuda")


def test_one_of_several_gpus_becomes_the_current_one(gpus: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    made = parser("echoplan_any", "", examples=[])
    add_device(made)
    name = made.parse_args(["-device", "cuda:1"]).device
    assert choose_device(name) == torch.device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "1")  # under torchrun no process opens a context on another's GPU
    choose_device("cuda")
    assert gpus.current == [1, 1]
    with pytest.raises(EchoPlanError, match=r"no device 'cuda:2' here \(there is: cuda:0, cuda:1, cpu\)"):
        choose_device("cuda:2")
    with pytest.raises(SystemExit):
        made.parse_args(["--device", "gpu"])


def test_a_gpu_is_prepared_before_its_first_kernel(gpus: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", lambda on: gpus.current.append(on))
    prepare_device(CPU)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ and not gpus.current
    prepare_device(GPU)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8" and gpus.current == [False, 0]
    assert not torch.backends.cuda.matmul.allow_tf32  # sam/parts.py needs exact phases


@pytest.mark.parametrize(
    ("device", "exact", "on", "warns"), [(CPU, False, True, True), (GPU, False, False, False), (GPU, True, True, False)]
)
def test_what_is_reproducible_is_so_within_the_block_alone(
    device: torch.device, exact: bool, on: bool, warns: bool
) -> None:
    def state() -> tuple[bool, ...]:
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
            torch.backends.cuda.mem_efficient_sdp_enabled(),
        )

    before = state()
    with reproducible(device, exact=exact):
        assert state() == (on, on and warns, False, not exact)
    assert state() == before


def test_what_cannot_be_exact_is_refused_where_it_has_to_be() -> None:
    def work() -> None:
        raise RuntimeError("put_ does not have a deterministic implementation, but you set 'torch...'. You can turn")

    with (
        pytest.raises(EchoPlanError, match="cannot be exact on cuda:0: put_ does not have a deterministic"),
        reproducible(GPU, exact=True),
    ):
        work()
    with pytest.raises(RuntimeError, match="put_"), reproducible(CPU):
        work()


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (MemoryError("out of memory"), False),
    ],
)
def test_every_lack_of_a_gpus_memory_is_known(error: Exception, short: bool) -> None:
    assert is_out_of_memory(error) is short
