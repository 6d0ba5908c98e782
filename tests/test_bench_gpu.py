"""`make bench-gpu`: it says so where there is no GPU, and on a pretended one every table is written."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from echoplan.experiment_planning import gpu_check

from .pretended_gpu import GPU, pretended_gpu

GB = 2**30


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", Path(__file__).parent / "benchmarks" / "gpu.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # dataclasses look their module up
    spec.loader.exec_module(made)
    return made


def test_without_a_gpu_it_says_so_in_a_line(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.main([]) == 1
    said = capsys.readouterr()
    assert said.err == "bench-gpu needs a GPU: no device 'cuda' here (there is: cpu)\n" and not said.out


@pytest.mark.usefixtures("slim_networks")
def test_all_its_tables_are_made(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    patches = {
        "device_count": lambda: 1,
        "set_device": lambda _: None,
        "get_device_name": lambda _: "Pretended",
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda: (79 * GB, 80 * GB),
        "memory_allocated": lambda: 0,
        "max_memory_allocated": lambda: GB,
        "memory_stats": lambda: {"num_ooms": 0},
        "reset_peak_memory_stats": lambda: None,
    }
    for name, patch in patches.items():
        monkeypatch.setattr(torch.cuda, name, patch)
    monkeypatch.setattr(gpu_check, "_DEVICE", GPU)
    monkeypatch.setattr(benchmark, "choose_device", torch.device)
    monkeypatch.setattr(benchmark, "LOADED", ("ResUNetTrainer",))
    good, broken = "ResUNetTrainer", "PKEchoNetR18Trainer"

    def peers(case: Any, *_: Any) -> None:
        if case.name == broken:
            raise RuntimeError("no such peer\nand more")

    monkeypatch.setattr(benchmark, "peers", peers)
    out = tmp_path / "made" / "table.md"
    options = ["--device", "cuda:0", "--small", "--steps", "1", "--workers", "0", "--out", str(out)]
    with pretended_gpu():
        assert benchmark.main([*options, "--trainers", good, broken]) == 1
        text = out.read_text()
        assert text.startswith("# EchoPlan on Pretended\n") and f"| {good}, 2 |" in text
        assert text.count("failed") == 1 and f"- {broken}: RuntimeError: no such peer\n" in text
        # Two batches, training, prediction, and loading, which the other one has no part in.
        assert [text.count(f"| {name}") for name in (good, broken)] == [5, 4]
        assert benchmark.main([*options, "--minutes", "0", "--trainers", good]) == 0
        assert f"## No time was left for\n\n- {good}, 1\n" in out.read_text()
