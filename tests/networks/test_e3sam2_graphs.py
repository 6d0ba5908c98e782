"""SAM2's and E3SAM2's graphs, computed by PyTorch and handed on as by other runtimes: the network's own answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from echoplan.errors import EchoPlanError
from echoplan.inference.deployment.steps import check_exact, deployed
from echoplan.networks import build_network
from echoplan.networks.steps import SteppingNetwork

from ..slim import narrow_sam2

SIZE, FRAMES = 64, 14


def frames_of(seed: int) -> torch.Tensor:
    """Bytes (T, H, W)."""
    return torch.randint(0, 256, (FRAMES, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sam2", {}),
        ("sam2", {"prompt": "box", "multimask": "sam2", "start_frame": "first", "standardise": "imagenet"}),
        ("e3sam2", {"memory_frames": 3}),
        ("e3sam2", {"memory": "confidence", "memory_frames": 3, "memory_tokens": "sam2", "object_score": True}),
        ("e3sam2", {"memory": "fifo", "later_prompt": "none", "prompt": "mask", "threshold": 0.45}),
        ("e3sam2", {"memory_frames": 1, "prompt": "centre", "adapter_place": "after", "memory_written": "before"}),
    ],
)
@torch.inference_mode()
def test_the_walk_and_the_cards_program_find_what_the_network_finds(name: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        narrow_sam2(patch, blocks=(1, 1, 2, 1), global_blocks=(3, 3, 3))
        network = build_network(name, size=(SIZE, SIZE), **settings).eval()
    assert isinstance(network, SteppingNetwork)
    frames = frames_of(0)
    clip = frames[:, None].float() / 255
    graphs = network.graphs((SIZE, SIZE))
    expected = dict(network.stream(clip))
    found = dict(network.walk(clip, lambda graph, told: graphs[graph].module(*told.values())))
    assert next(iter(found)) == next(iter(expected)) and found.keys() == expected.keys()
    for frame, logits in expected.items():
        torch.testing.assert_close(found[frame], logits, atol=1e-5, rtol=0)

    with_bytes = deployed(graphs, "unit", {})

    probabilities = []

    def run(graph: str, **told: Any) -> list[np.ndarray]:
        assert told.keys() == with_bytes[graph].inputs.keys()
        inputs = [torch.as_tensor(told[key]) for key in with_bytes[graph].inputs]
        outputs = with_bytes[graph].module(*inputs)
        probabilities.extend([outputs[1][:, 0]] if graph != "encoder" else [])
        return [output.numpy() for output in outputs]

    given: dict[str, Any] = {"np": np, "frames": frames.numpy(), "run": run}
    exec("\n".join(network.program()), given)
    for (frame, logits), probability in zip(found.items(), probabilities, strict=True):
        torch.testing.assert_close(probability, logits.sigmoid(), atol=1e-5, rtol=0)
        assert ((probability[0] >= 0.5).numpy() == given["masks"][frame]).all()


@torch.inference_mode()
def test_what_a_frame_leaves_in_memory_is_read_by_those_after_it() -> None:
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        narrow_sam2(patch, blocks=(1, 1, 2, 1), global_blocks=(3, 3, 3))
        network = build_network("sam2", size=(SIZE, SIZE), start_frame="first").eval()
    graphs = network.graphs((SIZE, SIZE))

    def forgetful(graph: str, told: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """As if there were only the start frame."""
        there = told.get("there", torch.ones(1, 0))
        kept = {"there": torch.eye(1, there.shape[1], dtype=torch.bool)} if graph == "frame" else {}
        return graphs[graph].module(*(told | kept).values())

    clip = frames_of(0)[:4, None].float() / 255
    expected, found = dict(network.stream(clip)), dict(network.walk(clip, forgetful))
    same = [torch.allclose(found[frame], expected[frame], atol=1e-5) for frame in range(4)]
    assert same == [True, True, False, False]


@pytest.mark.parametrize(("setting", "why"), [("memory_draw", "chance"), ("memory_across_clips", "the clip that")])
def test_what_no_graph_can_hand_on_is_refused(setting: str, why: str) -> None:
    with torch.device("meta"):
        network = build_network("e3sam2", size=(SIZE, SIZE), **{setting: True})
    with pytest.raises(EchoPlanError, match=why):
        check_exact(network)
