"""Networks taken apart, their graphs computed by PyTorch and handed on as by other runtimes: the network's answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from echoplan.errors import EchoPlanError
from echoplan.inference.deployment.steps import check_exact, deployed
from echoplan.networks import build_network
from echoplan.networks.interface import StreamingNetwork
from echoplan.networks.sam.graphs import program
from echoplan.networks.sam.locator import found_boxes
from echoplan.networks.steps import SteppingNetwork

SIZE, FRAMES = 64, 14


def frames_of(seed: int) -> torch.Tensor:
    """Bytes (T, H, W)."""
    return torch.randint(0, 256, (FRAMES, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("echoforge", {"backbone": "resnet18", "channels": 40, "query_layers": 1, "memory": 2}),
        ("sam2", {}),
        ("sam2", {"prompt": "box", "multimask": "sam2", "start_frame": "first", "standardise": "imagenet"}),
        ("e3sam2", {"memory_frames": 3}),
        ("e3sam2", {"memory": "confidence", "memory_frames": 3, "memory_tokens": "sam2", "object_score": True}),
        ("e3sam2", {"memory": "fifo", "later_prompt": "none", "prompt": "mask", "threshold": 0.45}),
        ("e3sam2", {"memory_frames": 1, "prompt": "centre", "adapter_place": "after", "memory_written": "before"}),
        ("sam", {"encoder_size": 32}),
        ("sam", {"encoder_size": 48, "model": "medsam", "boxes": "bounding_rect", "box_margin": 0.1}),
    ],
)
@torch.inference_mode()
def test_the_walk_and_the_cards_program_find_what_the_network_finds(
    name: str, settings: dict[str, Any], slim_networks: None
) -> None:
    torch.manual_seed(0)
    network = build_network(name, size=(SIZE, SIZE), **settings).eval()
    assert isinstance(network, SteppingNetwork)
    frames = frames_of(0)
    clip = frames[:, None].float() / 255
    graphs = network.graphs((SIZE, SIZE))
    walks = isinstance(network, StreamingNetwork)
    expected = dict(network.stream(clip) if walks else enumerate(network(clip[None])[0]))
    found = dict(network.walk(clip, lambda graph, told: graphs[graph].module(*told.values())))
    assert next(iter(found)) == next(iter(expected)) and found.keys() == expected.keys()
    for frame, logits in expected.items():
        torch.testing.assert_close(found[frame], logits, atol=1e-5, rtol=0)

    with_bytes = deployed(graphs, "unit", {})
    probabilities = []

    def run(graph: str, **told: Any) -> list[np.ndarray]:
        assert told.keys() == with_bytes[graph].inputs.keys()
        inputs = [torch.as_tensor(told[key]) for key in with_bytes[graph].inputs]
        assert [each.dtype for each in inputs] == [each.dtype for each in with_bytes[graph].inputs.values()]
        outputs = with_bytes[graph].module(*inputs)
        probabilities.extend([outputs[1][:, 0]] if graph != "encoder" else [])
        return [output.numpy() for output in outputs]

    given: dict[str, Any] = {"np": np, "frames": frames.numpy(), "run": run}
    exec("\n".join(network.program()), given)
    for (frame, logits), probability in zip(found.items(), probabilities, strict=True):
        torch.testing.assert_close(probability, logits.sigmoid(), atol=1e-5, rtol=0)
        assert ((probability[0] >= 0.5).numpy() == given["masks"][frame]).all()


def test_the_cards_program_boxes_the_region_that_the_locator_boxes() -> None:
    chance = np.random.default_rng(0)
    twins = np.zeros((128, 128), bool)
    twins[90:96, 3:9] = twins[5:11, 60:66] = True
    snake = np.zeros((128, 128), bool)
    snake[::4] = snake[2::8, -1] = snake[1::8, -1] = snake[3::8, -1] = True
    masks = [twins, snake, np.zeros((128, 128), bool), np.eye(128, dtype=bool)]
    masks += [ndimage.gaussian_filter(chance.standard_normal((128, 128)), width) > 0 for width in (0, 1, 4)]
    given: dict[str, Any] = {"np": np, "frames": np.zeros((0, 60, 90), np.uint8)}
    exec("\n".join(program(margin=0.05)), given)
    for mask in masks:
        expected = found_boxes(torch.from_numpy(mask).float()[None, None, None] - 0.5, size=(60, 90), margin=0.05)[0]
        np.testing.assert_allclose(given["box_of"](mask), expected.numpy(), atol=1e-4)


@torch.inference_mode()
def test_what_a_frame_leaves_in_memory_is_read_by_those_after_it(slim_networks: None) -> None:
    torch.manual_seed(0)
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
