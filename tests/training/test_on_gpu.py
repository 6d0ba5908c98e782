"""Every method's step, validation and prediction on a pretended GPU: nothing mixes devices, and the host hardly waits.

A wait costs little by itself, but the GPU runs dry: it has nothing to do until the host has caught up.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from echoplan.networks import build_network
from echoplan.networks.interface import AbreastNetwork
from echoplan.networks.sliding_window import segment_clip
from echoplan.preprocessing.clip import NormalisedFrames
from echoplan.training.fold import FoldSetup
from echoplan.training.methods import method_registry
from echoplan.training.model_folder import normalisation_for
from echoplan.training.trainer import Trainer

from ..pretended_gpu import GPU, pretended_gpu
from .test_every_trainer import NAMES, QUICK

# The most waits of a training step (the loss is looked at), of an epoch's validation (its Dice, and a loss that chooses
# the epoch), and of a predicted clip (its way back), whatever its number of frames; or of a few clips, walked abreast.
WAITS = (1, 1, 1)
MORE = {
    "E3SAM2Trainer": (1, 2, 2),  # the CPU chooses the frames at which clips begin
    "EchoNetTrainer": (1, 2, 1),
    "LiteMedSAMTrainer": (1, 3, 2),  # the box of what the locator found is made by the CPU, once for some frames
    "SAM2Trainer": (1, 2, 2),
    "SAMTrainer": (1, 3, 2),
}


@pytest.mark.usefixtures("slim_networks")
@pytest.mark.parametrize("name", NAMES)
def test_every_method_runs_on_a_gpu_and_hardly_waits_for_it(name: str, request: pytest.FixtureRequest) -> None:
    method = method_registry()[name]
    frames = method.requirements.frames
    setup: FoldSetup = request.getfixturevalue("frame_setup" if frames == 1 else "clip_setup")
    unlearned = {"pretrained": False} if hasattr(method.recipe, "pretrained") else {}
    common = {"epochs": 2, "iterations_per_epoch": 1, "batch_size": 1, "gradient_clip": 12.0}
    method = method.with_settings({**common, **unlearned, **QUICK.get(name, {}), "precision": "auto"})
    with pretended_gpu() as waits:
        trainer = Trainer(method, setup, device=GPU)
        trainer.on_epoch_start(0)
        waits.clear()
        counts = []
        for work in (trainer.train_epoch, trainer.validate_epoch, lambda: predicted(trainer)):
            work()
            counts.append(dict(waits))
            waits.clear()
    assert trainer.step.dtype == torch.bfloat16 and trainer.step.iteration == 1
    for most, found in zip(MORE.get(name, WAITS), counts, strict=True):
        assert sum(found.values()) <= most, found


def predicted(trainer: Trainer) -> None:
    network, plan, store = trainer.network, trainer.setup.plan, trainer.setup.store
    stored = store.case(trainer.setup.val[0])
    seen = normalisation_for(network, plan)
    whole = store.frames(stored.case)
    clips = [whole, whole[:3], whole[2:]] if isinstance(network, AbreastNetwork) else [whole]
    frames = NormalisedFrames(clips, [(stored.mean, stored.std)] * len(clips), seen, GPU)
    lengths = [len(clip) for clip in clips]
    found = segment_clip(network, frames, clips=lengths, classes=1, window=plan.frames, batch=len(frames))
    assert found.shape == (1, *frames.shape) and 0 <= found.min() <= found.max() <= 1


class Operations(TorchDispatchMode):
    """Counts those that a GPU would have a kernel for: all but views and what is only set aside."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        own = any(each.alias_info is None or each.alias_info.is_write for each in func._schema.returns)
        self.count += own and not func._schema.name.startswith("aten::empty")
        return result


@pytest.mark.usefixtures("slim_networks")
@pytest.mark.parametrize("name", ["e3sam2", "sam2", "echoforge"])
def test_eight_clips_abreast_hardly_take_more_kernels_than_one(name: str) -> None:
    # Of clips that begin anywhere the longest way decides how many steps there are.
    first = {"start_frame": "first"} if name.endswith("sam2") else {}
    network, counts = build_network(name, size=(32, 32), **first).eval(), []
    for clips in (1, 8):
        with torch.no_grad(), Operations() as operations:
            assert len(list(network.streams(torch.randn(12 * clips, 1, 32, 32), [12] * clips))) == 12 * clips
        counts.append(operations.count)
    assert 0 < counts[1] < 1.6 * counts[0], counts


def test_the_pretended_gpu_refuses_what_a_gpu_refuses() -> None:
    with pretended_gpu() as waits:
        values, places = torch.arange(6.0, device=GPU), torch.tensor([0, 2])
        assert values.device == GPU and values.is_cuda and (values * 2).device == GPU
        with pytest.raises(RuntimeError, match="same device, but found cuda:0 and cpu"):
            values + torch.ones(6)
        with pytest.raises(RuntimeError, match="same device as the indexed"):
            torch.ones(6)[values.long()]
        with pytest.raises(RuntimeError, match=r"not implemented for torch\.uint8"):
            F.interpolate(torch.zeros(1, 1, 4, 4, dtype=torch.uint8, device=GPU), scale_factor=2, mode="bilinear")
        with pytest.raises(TypeError, match=r"Tensor\.cpu"):
            values.numpy()
        assert not waits
        float(values.sum())  # each of these waits
        values[values > 2]
        values[places]
        values.cpu()
        torch.tensor([1.0, 2.0], device=GPU)
        assert sum(waits.values()) == 5
        places.pin_memory().to(GPU, non_blocking=True)
        torch.zeros(3, device=GPU).add_(torch.tensor(1.0))
        assert sum(waits.values()) == 5
