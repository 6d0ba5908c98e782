"""Real steps that check the forecast, on a made-up GPU: torch.cuda is patched, and the steps run on the CPU."""

import contextlib
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch

from echoplan.experiment_planning import MemoryModel, gpu_check, plan_experiment
from echoplan.experiment_planning.gpu_check import StepMemory, can_check, check_batch, gpu_here, measured_step
from echoplan.experiment_planning.memory import CONTEXT_GB
from echoplan.scripts import plan_experiment as command

from .conftest import load
from .test_memory import GB, TwoConvolutions, method_of

SHAPE = {"size": (32, 32), "frames": 2, "classes": 1}
FORECAST = MemoryModel(fixed_gb=0.4, per_sample_gb=0.5)  # 1.0 GB with the context, and 0.5 a sample: 5 samples in 4 GB


@dataclass
class FakeGPU:
    """A GPU on which samples take `gb_per_sample`; more than `most` at a time do not fit, nor do `longest` frames."""

    total_gb: float = 8.0
    gb_per_sample: float = 0.1
    most: int = 1000
    longest: int = 1000
    shortages: int = 0
    calls: list = field(default_factory=list)

    def enter(self, clip):
        self.calls.append(len(clip))
        if len(clip) > self.most or clip.shape[1] > self.longest:
            self.shortages += 1
            raise torch.OutOfMemoryError(f"{len(clip)} samples of {clip.shape[1]} frames")

    def peak_bytes(self):
        return int(self.calls[-1] * self.gb_per_sample * GB)


@pytest.fixture
def gpu(monkeypatch):
    fake = FakeGPU()
    patches = {
        "is_available": lambda: True,
        "get_device_properties": lambda _: SimpleNamespace(name="Fake", total_memory=int(fake.total_gb * GB)),
        "mem_get_info": lambda: (int(fake.total_gb * GB) - GB // 2, int(fake.total_gb * GB)),
        "memory_allocated": lambda: 0,
        "memory_stats": lambda: {"num_ooms": fake.shortages},
        "max_memory_allocated": fake.peak_bytes,
        "reset_peak_memory_stats": lambda: fake.calls.append("reset"),
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
    }
    for name, patch in patches.items():
        monkeypatch.setattr(torch.cuda, name, patch)
    monkeypatch.setattr(gpu_check, "_DEVICE", "cpu")
    return fake


@pytest.fixture
def method(gpu):
    """A method whose steps fill the made-up GPU."""

    class Filling(method_of(TwoConvolutions)):
        def loss(self, output, batch, **watch):
            if not output.logits.is_meta:  # the forecast
                gpu.enter(batch["clip"])
            return super().loss(output, batch, **watch)

    return Filling()


def test_a_step_is_taken_and_its_peak_read(method, gpu):
    before = torch.are_deterministic_algorithms_enabled()  # whatever other tests of this process have left
    assert measured_step(method, batch_size=3, **SHAPE) == StepMemory(gb=pytest.approx(0.3), free_gb=7.5)
    assert gpu.calls == ["reset", 3]
    assert torch.are_deterministic_algorithms_enabled() == before


@pytest.mark.parametrize("most", [2, 0])  # the trainer goes on with two halves, or they do not fit either
def test_a_step_that_runs_out_of_memory_has_no_peak(method, gpu, most):
    gpu.most = most
    assert measured_step(method, batch_size=4, **SHAPE).gb is None


def test_what_else_goes_wrong_is_no_lack_of_memory(method, monkeypatch):
    def broken(output, batch, **_):
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(method, "loss", broken)
    with pytest.raises(RuntimeError, match="CUDA error"):
        measured_step(method, batch_size=4, **SHAPE)


def check(batch, taken):
    """`check_batch` of the forecast in 4 GB, with steps that take what `taken` says of a batch; None: too much."""
    tried = []

    def take_step(method, *, batch_size, **shape):
        tried.append(batch_size)
        return StepMemory(taken(batch_size), 3.5)

    return check_batch(batch, FORECAST, 4.0, method_of(TwoConvolutions)(), take_step=take_step, **SHAPE), tried


def forecast(batch):
    return FORECAST.gb(batch) - CONTEXT_GB


def test_a_forecast_that_holds_is_evidence():
    checked, tried = check(5, lambda batch: 1.02 * forecast(batch))
    assert tried == [5] and checked.size == 5
    assert checked.words == "; a real step with 5 took 102% of the forecast"
    assert checked.evidence == {"measured_gb": 2.96, "forecast_gb": 2.9, "measured_over_forecast": 1.02}


def test_a_step_beyond_the_target_lowers_the_batch_by_the_planners_rule():
    checked, tried = check(5, lambda batch: 1.5 * forecast(batch))
    # By half more of the forecast: 1.2 GB and 0.75 a sample, and 3.6 of 4 GB to use.
    assert tried == [5, 3] and checked.size == 3
    assert checked.words.startswith("; lowered from 5 to 3: a real step with 5 took 4.9 GB, 150% of the forecast")
    assert checked.evidence["measured_over_forecast"] == 1.5


def test_a_batch_that_runs_out_of_memory_is_halved():
    checked, tried = check(5, lambda batch: forecast(batch) if batch < 2 else None)
    assert tried == [5, 2, 1] and checked.size == 1
    ran_out = "ran out of memory (3.5 GB were free)"
    assert f"from 5 to 1: a real step with 5 {ran_out}, a real step with 2 {ran_out}; a real step" in checked.words


def test_not_even_one_sample_may_fit():
    checked, tried = check(5, lambda batch: None)
    assert tried == [5, 2, 1] and checked.size == 0 and checked.words.startswith("; lowered from 5 to 0: ")


def test_where_cuda_fails_the_forecast_stands(caplog):
    def broken(batch):
        raise RuntimeError("CUDA error: unspecified launch failure")

    checked, _ = check(5, broken)
    assert checked.size == 5 and checked.words == ""
    assert checked.evidence == {"check_failed": "RuntimeError: CUDA error: unspecified launch failure"}
    assert "no real step could check the forecast of its memory: RuntimeError: CUDA error" in caplog.text


@pytest.mark.parametrize(("target", "wanted"), [(8.0, True), (4.0, True), (8.5, True), (11.0, False)])
def test_only_plans_for_the_gpu_that_is_here_are_checked(gpu, target, wanted):
    assert can_check(gpu_here(), target) is wanted  # 8.5: what a "8.5 GB" GPU may have, less than a tenth apart
    assert not can_check(None, target)


def test_a_gpu_that_cannot_be_used_is_none(gpu, monkeypatch, caplog):
    def broken(_):
        raise RuntimeError("no CUDA-capable device is detected")

    monkeypatch.setattr(torch.cuda, "get_device_properties", broken)
    assert gpu_here() is None and "no CUDA-capable device" in caplog.text


def planned(method, **options):
    fingerprint, description = load("camus")
    plan = plan_experiment(fingerprint, description, trainers={"T": method}, size=(32, 32), **options)
    return plan.trainers["T"].decisions


def test_a_plan_has_what_was_measured(method, gpu):
    gpu.gb_per_sample = 0.001
    batch = planned(method)["batch_size"]
    assert batch.value == 4 and gpu.calls == ["reset", 4]
    assert batch.evidence["measured_gb"] == 0.0 and batch.evidence["measured_over_forecast"] > 0
    assert "a real step with 4 took" in batch.rule


def test_a_plan_is_lowered_to_what_fits_and_its_rate_says_so(method, gpu):
    gpu.most = 2
    decided = planned(method)
    assert decided["batch_size"].value == 2 and decided["batch_size"].evidence["fits"]
    assert "lowered from 4 to 2: a real step with 4 ran out of memory (7.5 GB were free)" in decided["batch_size"].rule
    assert decided["learning_rate"].value == 1e-3 and "the batch is 2 instead of 4" in decided["learning_rate"].rule


def test_clips_become_shorter_where_a_real_step_does_not_fit(method, gpu):
    gpu.longest = 7

    class Clips(type(method)):
        configuration = "clip"
        requirements = replace(method.requirements, batch_size=2, frames=10)

    decided = planned(Clips(), gpu_memory_gb=8.0)
    assert decided["frames"].value == 6 and decided["batch_size"].value == 2


@pytest.mark.parametrize("options", [{"check": None}, {"gpu_memory_gb": 24.0}])
def test_no_step_is_taken_where_none_is_wanted(method, gpu, options):
    batch = planned(method, **options)["batch_size"]
    assert gpu.calls == [] and batch.value == 4 and "measured_gb" not in batch.evidence


@pytest.mark.parametrize(("words", "wanted"), [([], check_batch), (["--no_gpu_check"], None)])
def test_the_command_can_do_without(tiny_dataset, tmp_path, monkeypatch, words, wanted):
    monkeypatch.setenv("ECHOPLAN_ROOT", str(tmp_path))
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"echoplan_{name}", raising=False)
    tiny_dataset(patients=1)
    seen = []

    def stop(*_, check, **__):
        seen.append(check)
        raise KeyboardInterrupt

    monkeypatch.setattr("echoplan.experiment_planning.commands._read_fingerprint", lambda *_: {})
    monkeypatch.setattr("echoplan.experiment_planning.commands.make_plan", stop)
    with contextlib.suppress(KeyboardInterrupt):
        command(["-d", "TINY", "-tr", "UNetTrainer", *words])
    assert seen == [wanted]
