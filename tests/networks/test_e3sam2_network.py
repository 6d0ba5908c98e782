"""E3SAM2 whole: settings, training, prompts, memory banks, and clips of any length."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from echoplan.errors import EchoPlanError
from echoplan.networks import ClipOutput, build_network
from echoplan.networks.complexity import count_gmac, count_parameters
from echoplan.networks.e3sam2.banks import BANKS, ConfidentFrames, DiverseFrames, LatestFrames, MemoryBank, Remembered
from echoplan.networks.e3sam2.model import E3SAM2
from echoplan.networks.e3sam2.prompts import Prompting, Prompts, automatic_points, confidence
from echoplan.networks.e3sam2.tracking import walking_steps
from echoplan.networks.interface import AbreastNetwork, StreamingNetwork
from echoplan.networks.sliding_window import segment_clip

from ..slim import narrow_sam2

SIZE = 64


def build_narrow(*, size: int = SIZE, **settings: Any) -> E3SAM2:
    """E3SAM2 with random weights, of all parts, with few channels."""
    with pytest.MonkeyPatch.context() as patch:
        narrow_sam2(patch)
        return build_network("e3sam2", size=(size, size), **settings)


@pytest.fixture(scope="module")
def network() -> E3SAM2:
    torch.manual_seed(0)
    return build_narrow()


@pytest.fixture
def deterministic(network: E3SAM2) -> Iterator[E3SAM2]:
    """In training mode, but without dropout."""
    network.train()
    network.memory.attention.eval()
    yield network
    network.zero_grad(set_to_none=True)


def clip_of(frames: int, *, clips: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(clips, frames, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def prompts_of_all_kinds() -> Prompts:
    mask = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    mask[0, 10:40, 20:50] = True
    return Prompts.joined(
        [
            Prompts.given(torch.tensor([[20.0, 30.0]]), [2]),
            Prompts.automatic(["none"]),
            Prompts.given_masks(mask, [1]),
            Prompts.automatic(["mask"]),
            Prompts.given_boxes(torch.tensor([[12.0, 9.0, 40.0, 50.0]]), [0]),
            Prompts.automatic(["auto"]),
        ]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (64, 96)}, "square frames.*64 x 96"),
        ({"size": (80, 80)}, "multiples of 32"),
        ({"classes": 3}, "segments one object, not 3"),
        ({"variant": "huge"}, "variant cannot be 'huge'.*tiny, small, base_plus, large"),
        ({"windows": "none"}, "windows cannot be 'none'.*sam2, light"),
        ({"memory": "all"}, "memory cannot be 'all'.*medsam2, confidence, fifo"),
        ({"prompt": "circle"}, "prompt cannot be 'circle'.*auto, point, box, mask, centre, none"),
        ({"multimask": "twice"}, "multimask cannot be 'twice'.*always, sam2, never"),
        ({"memory_frames": 9}, "memory_frames must be 1 to 7, not 9"),
        ({"threshold": 1.0}, "threshold must lie between 0 and 1"),
        ({"trainable": "nothing"}, "trainable cannot be 'nothing'.*all_but_trunk"),
    ],
)
def test_settings_it_cannot_take(settings: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(EchoPlanError, match=message):
        build_network("e3sam2", **({"size": (SIZE, SIZE)} | settings))


def test_training_output_has_what_the_losses_need(deterministic: E3SAM2) -> None:
    output = deterministic(clip_of(3, clips=2))
    assert isinstance(output, ClipOutput)
    assert output.logits.shape == (2, 3, 1, SIZE, SIZE)
    found = output.auxiliary
    assert found["masks"].shape == (2, 3, 3, 16, 16)
    assert found["iou"].shape == (2, 3, 3)
    assert found["object_score"].shape == (2, 3)
    assert found["coarse"].shape == (2, 3, 1, 4, 4)
    assert found["edges"].shape == (2, 3, 1, 16, 16)
    assert [each.shape for each in found["entropies"]] == [(2, 3, n) for n in (256, 64, 16)]
    assert found["start"].shape == (2,)
    # The mask that counts is the one of the best predicted IoU, enlarged.
    best = found["masks"][1, 2, found["iou"][1, 2].argmax()]
    enlarged = torch.nn.functional.interpolate(best[None, None], size=(SIZE, SIZE), mode="bilinear")
    torch.testing.assert_close(output.logits[1, 2], enlarged[0])


def test_everything_trainable_learns_and_the_trunk_rests(network: E3SAM2) -> None:
    with torch.inference_mode():
        network.eval()(clip_of(2))  # must leave nothing behind that cannot be trained with
    torch.manual_seed(3)
    output = network.train()(clip_of(3, clips=2))
    found = output.auxiliary
    parts = [output.logits, *found["entropies"], *(found[name] for name in ("masks", "iou", "object_score"))]
    sum(part.square().mean() for part in (*parts, found["coarse"], found["edges"])).backward()
    resting = ("decoder.", "prompting.encoder.", "prompting.shrink.", "encoder.trunk.blocks.")
    fed = tuple(f"encoder.trunk.blocks.{block}." for block in (1, 3, 10))
    unused = "memory.encoder."  # no gradient runs through memories
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad is (name.startswith(fed) or not name.startswith(resting)), name
        assert (parameter.grad is not None) is (parameter.requires_grad and not name.startswith(unused)), name
    copy.deepcopy(network)
    network.zero_grad(set_to_none=True)


@pytest.mark.parametrize("detached", [False, True])
def test_gradients_reach_the_start_frame_through_memory(
    deterministic: E3SAM2, monkeypatch: pytest.MonkeyPatch, detached: bool
) -> None:
    monkeypatch.setattr(deterministic, "settings", replace(deterministic.settings, memory_detached=detached))
    clip = clip_of(4).requires_grad_()
    output = deterministic(clip, Prompts.given(torch.tensor([[30.0, 30.0]]), [1]))
    output.logits[0, 3].sum().backward()
    reached = clip.grad.abs().sum(dim=(2, 3, 4))[0] > 0
    assert reached[3]
    assert bool(reached[1]) is not detached
    assert not reached[0]  # the frame before the start frame is seen last
    assert (deterministic.memory.encoder.out_proj.weight.grad is None) is detached


def test_training_is_the_same_with_the_same_seed_and_in_any_batch(deterministic: E3SAM2) -> None:
    clips, prompts = clip_of(3, clips=6), prompts_of_all_kinds()
    with torch.no_grad():
        together = deterministic(clips, prompts)
        assert len(set(together.auxiliary["start"].tolist())) > 1
        for index in range(6):
            alone = deterministic(clips[index : index + 1], prompts.of_clip(index))
            torch.testing.assert_close(alone.logits[0], together.logits[index], atol=1e-4, rtol=1e-4)
        deterministic.memory.attention.train()
        outputs = []
        for _ in range(2):
            torch.manual_seed(5)
            outputs.append(deterministic(clips, prompts).logits)
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], together.logits)  # there was dropout


def test_evaluation_does_what_training_without_dropout_does(deterministic: E3SAM2) -> None:
    clips, prompts = clip_of(9, clips=2), prompts_of_all_kinds()
    prompts = Prompts.joined([prompts.of_clip(2), prompts.of_clip(3)])
    with torch.no_grad():
        trained = deterministic(clips, prompts).logits
        torch.testing.assert_close(deterministic.eval()(clips, prompts), trained, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_clip_gives_the_same_alone_in_a_batch_beside_longer_ones_and_again(network: E3SAM2) -> None:
    clips = clip_of(4, clips=2)
    together = network.eval()(clips)
    assert together.shape == (2, 4, 1, SIZE, SIZE)
    assert torch.equal(network(clips), together)
    for index in range(2):
        torch.testing.assert_close(network(clips[index : index + 1])[0], together[index], rtol=0, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize(
    "settings",
    [
        {"memory": "medsam2"},
        {"memory": "confidence", "memory_tokens": "sam2", "memory_frames": 7, "start_frame": "surest"},
        {"memory": "fifo", "memory_draw": True, "prompt": "point"},
        {"memory_across_clips": True},
    ],
)
def test_clips_of_any_lengths_abreast_are_what_each_is_alone(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = build_narrow(**settings).eval()
    clips = [clip_of(frames, seed=seed)[0] for seed, frames in enumerate((3, 12, 1, 7))]
    alone = [dict(network.stream(clip)) for clip in clips]
    if network.carried is not None:
        network.carried.bank = None
    abreast = dict(network.streams(torch.cat(clips), [len(clip) for clip in clips]))
    expected = torch.stack([found[frame] for found in alone for frame in range(len(found))])
    found = torch.stack([abreast[place] for place in range(len(abreast))])
    assert isinstance(network, AbreastNetwork) and expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_the_number_of_threads_leaves_masks_alone(network: E3SAM2) -> None:
    before = torch.get_num_threads()
    try:
        masks = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            masks.append(network.eval()(clip_of(2)) > 0)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*masks)


@torch.inference_mode()
@pytest.mark.parametrize("frames", [1, 2, 34])
def test_any_number_of_frames(network: E3SAM2, frames: int) -> None:
    assert isinstance(network.eval(), StreamingNetwork)
    clip = clip_of(frames)[0]
    probabilities = torch.from_numpy(segment_clip(network, clip[:, 0], window=10, classes=1))
    assert probabilities.shape == (1, frames, SIZE, SIZE)
    assert ((probabilities > 0) & (probabilities < 1)).all()
    first, logits = next(iter(network.stream(clip)))
    torch.testing.assert_close(probabilities[:, first], logits.sigmoid())


def test_three_equal_channels_are_what_a_grey_frame_is(network: E3SAM2) -> None:
    grey = clip_of(2)
    with torch.inference_mode():
        assert torch.equal(network.eval()(grey), network(grey.repeat(1, 1, 3, 1, 1)))


def test_frames_of_another_size_are_refused(network: E3SAM2) -> None:
    with pytest.raises(EchoPlanError, match="built for frames of 64 x 64, not 96 x 96"):
        network(torch.zeros(1, 2, 1, 96, 96))


@torch.inference_mode()
def test_memory_does_not_grow_with_the_clip() -> None:
    torch.manual_seed(0)
    tiny = build_narrow(size=32, memory="fifo").eval()
    features = tiny._encode(torch.zeros(1, 1, 32, 32), [0], [(0, 0)])[0, 0]
    a_frame = 4 * sum(each.numel() for each in vars(features).values())
    del features
    clip = torch.randn(70, 1, 32, 32)
    before = _tensor_bytes()
    held = [_tensor_bytes() - before for step, _ in enumerate(tiny.stream(clip)) if step in (0, 30, 60)]
    # The 32 candidates, those that are next, and the memory bank; not the whole clip.
    assert 25 * a_frame < max(held) < 45 * a_frame


def _tensor_bytes() -> int:
    storages = {
        each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
        for each in gc.get_objects()
        if type(each) is Tensor and each.device.type == "cpu"
    }
    return sum(storages.values())


# Prompts -------------------------------------------------------------------------------------------------------------


def blob(height: int, width: int, *regions: tuple[slice, slice]) -> Tensor:
    logits = torch.full((1, height, width), -8.0)
    for region in regions:
        logits[(0, *region)] = 8.0
    return logits


def test_point_and_box_lie_about_the_region_that_hangs_together() -> None:
    large, small = (slice(4, 12), slice(2, 7)), (slice(1, 3), slice(12, 15))
    points, labels = automatic_points(torch.stack([blob(16, 16), blob(16, 16, large, small)]), "auto")
    assert labels == (2, 3, 1)
    points = points[1]
    left, top, right, bottom = points[:2].flatten().tolist()
    x, y = points[2].tolist()
    assert abs(x - 72) < 8
    assert abs(y - 128) < 16
    for found, wanted in ((left, 32), (top, 64), (right, 111), (bottom, 191)):
        assert abs(found - wanted) <= 8
    assert torch.equal(automatic_points(blob(16, 16, large, small)[None], "point")[0][0, 0], points[2])
    assert torch.equal(automatic_points(blob(16, 16, large, small)[None], "box")[0][0], points[:2])
    assert automatic_points(blob(16, 16, large)[None], "none")[1] == (-1,)


def test_a_prompt_is_made_even_where_nothing_stands_out() -> None:
    points, labels = automatic_points(blob(4, 4)[None], "auto")
    assert labels == (2, 3, 1)
    assert ((points >= 0) & (points < 64)).all()


def test_a_clear_frame_is_surer_than_a_vague_or_an_empty_one() -> None:
    clear = blob(16, 16, (slice(4, 12), slice(2, 7)))
    sure, vague, empty = confidence(torch.stack([clear, clear / 8, blob(16, 16)])).tolist()
    assert sure > 0.99
    assert sure > vague > empty


@torch.inference_mode()
def test_a_given_point_sets_the_start_frame_and_counts(network: E3SAM2) -> None:
    frames = clip_of(5)[0]
    network.eval()
    one, other = (Prompts.given(torch.tensor([point]), [3]) for point in ((10.0, 12.0), (50.0, 40.0)))
    assert [index for index, _ in network.stream(frames, one)] == [3, 2, 4, 1, 0]
    assert not torch.allclose(dict(network.stream(frames, one))[3], dict(network.stream(frames, other))[3])


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["box", "mask"])
def test_a_given_box_and_a_given_mask_count_too(network: E3SAM2, kind: str) -> None:
    frames = clip_of(4)[0]
    network.eval()
    masks = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    masks[0, 8:30, 8:30] = masks[1, 30:60, 20:50] = True
    boxes = torch.tensor([[8.0, 8.0, 29.0, 29.0], [20.0, 30.0, 49.0, 59.0]])
    make = {"box": lambda i: Prompts.given_boxes(boxes[i : i + 1], [2]),
            "mask": lambda i: Prompts.given_masks(masks[i : i + 1], [2])}[kind]  # fmt: skip
    one, other = (dict(network.stream(frames, make(index))) for index in range(2))
    assert list(one) == [2, 1, 3, 0]
    assert all(not torch.allclose(one[frame], other[frame], atol=1e-4) for frame in one)
    if kind == "mask":
        assert ((one[2] > 0) == masks[0]).float().mean() > 0.98


@torch.inference_mode()
def test_the_coarse_heads_mask_is_shown_and_not_believed(network: E3SAM2) -> None:
    coarse = blob(SIZE // 16, SIZE // 16, (slice(1, 3), slice(0, 2)))[None]
    (start,) = network.prompting.begin([coarse], [[7]], Prompts.automatic(["mask"]))
    assert (start.frame, start.answer, start.labels) == (7, None, (-1,))
    assert start.dense.shape == (1, SIZE // 4, SIZE // 4)
    wanted = torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")[0]
    assert torch.equal(start.dense, wanted)
    _, dense = network.prompting.embed([start])
    no_prompt = build_network("sam2", size=(SIZE, SIZE)).prompting.follower()(torch.zeros(1, 256, 4, 4))[1]
    assert not torch.allclose(dense, no_prompt)


def test_masks_as_prompts_are_learned_where_the_network_makes_them() -> None:
    with torch.device("meta"):
        for prompt, learns in (("auto", False), ("mask", True)):
            prompting = build_network("sam2", size=(SIZE, SIZE), prompt=prompt).prompting
            assert all(p.requires_grad is learns for p in prompting.encoder.mask_downscaling.parameters())
            assert not prompting.shrink.weight.requires_grad


def test_a_prompt_must_say_where(network: E3SAM2) -> None:
    empty = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    wrong = {
        "mask given as a prompt is empty": Prompts.given_masks(empty, [0]),
        "64 x 64 pixels is to be given, but it is": Prompts.given_masks(torch.ones(1, 9, 9, dtype=torch.bool), [0]),
        "64 x 64 pixels is to be given, but there is none": Prompts(("given_mask",), torch.zeros(1, 2), (0,)),
        "is no box": Prompts.given_boxes(torch.full((1, 4), torch.nan), [0]),
        "box is to be given, but there is none": Prompts(("given_box",), torch.zeros(1, 2), (0,)),
    }
    for message, prompts in wrong.items():
        with pytest.raises(EchoPlanError, match=message):
            network(clip_of(2), prompts)
    with pytest.raises(EchoPlanError, match=r"\[5.0, 5.0, 4.0, 9.0\] is no box"):
        network(clip_of(2), Prompts.given_boxes(torch.tensor([[5.0, 5.0, 4.0, 9.0]]), [0]))
    with pytest.raises(EchoPlanError, match=r"2 clips, but .* and \[1\] boxes and masks"):
        network(clip_of(2, clips=2), Prompts(("auto", "auto"), torch.zeros(2, 2), (0, 0), boxes=torch.zeros(1, 4)))


def test_prompts_that_do_not_fit_the_clips(network: E3SAM2) -> None:
    with pytest.raises(EchoPlanError, match="2 clips, but 1 kinds"):
        network(clip_of(2, clips=2), Prompts.given(torch.zeros(1, 2), [0]))
    with pytest.raises(EchoPlanError, match="frame 2 of a clip of 2 frames"):
        network(clip_of(2), Prompts.given(torch.zeros(1, 2), [2]))
    with pytest.raises(EchoPlanError, match=r"no kind of prompt 'spoken'.*given_mask, auto"):
        network(clip_of(2), Prompts(("spoken",), torch.zeros(1, 2), (0,)))


# Memory --------------------------------------------------------------------------------------------------------------


def remembered(frame: int, direction: int, confidence: float = 0.9) -> Remembered:
    features = torch.zeros(1, 64, 1, 1)
    features[0, direction] = 1
    number = torch.full((1, 256), float(frame))
    return Remembered(torch.tensor([frame]), features, number, number, torch.tensor([confidence]))


def bank_of(kind: type[MemoryBank], size: int, directions: tuple[int, ...]) -> MemoryBank:
    bank = kind(remembered(0, 0), size)
    for frame, direction in enumerate(directions, start=1):
        bank.add(remembered(frame, direction))
    return bank


def frames_in(bank: MemoryBank) -> list[int]:
    there = bank.frames.get("there", torch.ones(1, bank.count, dtype=torch.bool))
    return bank.frames["seen"][there][:, 0].int().tolist()


def test_first_in_first_out_keeps_the_start_and_the_last_six() -> None:
    bank = bank_of(LatestFrames, 7, (0,) * 29)
    assert frames_in(bank) == [0, 24, 25, 26, 27, 28, 29]
    assert bank.pointers["frame"].tolist() == [[0, *range(15, 30)]]
    assert frames_in(bank_of(LatestFrames, 1, (0, 0))) == [0]


def test_a_full_bank_gives_up_what_is_most_like_the_rest() -> None:
    def full() -> MemoryBank:
        return bank_of(ConfidentFrames, 7, (1, 2, 3, 3, 4, 5))

    bank = full()
    bank.add(remembered(7, 6, confidence=0.69))
    assert frames_in(bank) == [0, 1, 2, 3, 4, 5, 6]
    bank.add(remembered(8, 6))
    assert frames_in(bank) == [0, 1, 2, 4, 5, 6, 8]  # of the two that are alike, one went
    for like_another in (remembered(8, 3), remembered(8, 0)):
        bank = full()
        bank.add(like_another)
        assert frames_in(bank) == [0, 1, 2, 3, 4, 5, 6]
    bank = full()
    bank.add(remembered(8, 6, confidence=0.81))
    assert 8 in frames_in(bank)
    bank = full()
    bank.add(remembered(8, 6, confidence=0.79))
    assert 8 not in frames_in(bank)
    assert bank.pointers["frame"].tolist() == [[*range(7), 8]]


def test_frames_that_did_not_enter_are_not_read_and_go_first() -> None:
    bank = bank_of(ConfidentFrames, 3, ())
    for frame, sure in ((1, 0.2), (2, 0.9), (3, 0.3), (4, 0.8)):
        bank.add(remembered(frame, frame, sure))
    assert (bank.count, frames_in(bank)) == (3, [0, 2, 4])
    assert bank.pointers["there"].tolist() == [[True, False, True, False, True]]


@torch.inference_mode()
def test_what_is_not_there_changes_nothing() -> None:
    """A bank of confident frames reads like one that never saw the others."""
    torch.manual_seed(0)
    memory = build_network("sam2", size=(32, 32)).eval().memory
    top, positions = torch.randn(1, 256, 2, 2), torch.randn(1, 256, 2, 2)

    def frame(index: int, confidence: float) -> Remembered:
        noise = torch.Generator().manual_seed(index)
        features, pointer = torch.randn(1, 64, 2, 2, generator=noise), torch.randn(1, 256, generator=noise)
        return Remembered(torch.tensor([index]), features, None, pointer, torch.tensor([confidence]))

    def read(*seen: tuple[int, float]) -> Tensor:
        bank = ConfidentFrames(frame(0, 0.9), 7)
        for index, sure in seen:
            bank.add(frame(index, sure))
        where = {"frames": torch.tensor([5]), "lengths": torch.tensor([9])}
        return memory.read(top, positions, bank=bank, draw=lambda weights: weights, **where)

    found = read((1, 0.8), (2, 0.1), (3, 0.9), (4, 0.2))
    torch.testing.assert_close(found, read((1, 0.8), (3, 0.9)))
    assert not torch.allclose(found, read((1, 0.8), (2, 0.8), (3, 0.9)), atol=1e-4)


def test_diverse_frames_let_go_of_a_twin_and_never_grow() -> None:
    def full() -> MemoryBank:
        return bank_of(DiverseFrames, 4, (1, 1, 2))

    def mixed(frame: int, confidence: float = 0.9) -> Remembered:
        """Least like direction 1, of which there are two."""
        new = remembered(frame, 0, confidence)
        new.features[0, 2], new.features[0, 5] = 1, 3
        return new

    bank = full()
    bank.add(mixed(4))
    assert frames_in(bank) == [0, 1, 3, 4]  # of the two that are alike one went, and the new one came last
    bank = full()
    bank.add(mixed(4, confidence=0.79))
    assert frames_in(bank) == [0, 1, 2, 3]
    bank.add(mixed(5, confidence=0.81))
    assert frames_in(bank) == [0, 1, 3, 5]
    assert frames_in(bank_of(DiverseFrames, 1, (1,))) == [0]


@pytest.mark.parametrize("kind", BANKS.values())
def test_walks_side_by_side_remember_what_each_would_alone(kind: type[MemoryBank]) -> None:
    chance = torch.Generator().manual_seed(0)
    seen = [
        Remembered(
            torch.full((3,), frame),
            torch.randn(3, 64, 1, 1, generator=chance),
            torch.full((3, 256), float(frame)),
            torch.zeros(3, 256),
            0.6 + 0.4 * torch.rand(3, generator=chance),
        )
        for frame in range(12)
    ]
    together, alone = kind(seen[0], 4), [kind(seen[0].of_row(row), 4) for row in range(3)]
    for new in seen[1:]:
        together.add(new)
        for row, bank in enumerate(alone):
            bank.add(new.of_row(row))
    kept = [frames_in(bank) for bank in alone]
    assert [frames_in(together.of_rows([row])) for row in range(3)] == kept
    assert len({*map(tuple, kept)}) > 1 or kind is LatestFrames


def twins(**settings: object) -> tuple[E3SAM2, E3SAM2]:
    """Two networks of the same weights in evaluation mode, the second one with other settings."""
    torch.manual_seed(0)
    usual = build_narrow(size=32).eval()
    other = build_narrow(size=32, **settings).eval()
    other.load_state_dict(usual.state_dict())
    return usual, other


def test_a_carried_memory_changes_the_next_clip_and_is_off_by_default() -> None:
    clips = clip_of(3, clips=2)[..., :32, :32]
    alone, leaking = twins(memory_across_clips=True)
    with torch.inference_mode():
        assert torch.equal(leaking(clips[:1]), alone(clips[:1]))
        assert not torch.equal(leaking(clips[1:]), alone(clips[1:]))
    leaking.train()(clips[:1]).logits.sum().backward()  # and training reads what a validation left
    assert leaking.carried.bank.count == 4


@torch.inference_mode()
def test_what_is_drawn_from_memory_is_the_same_again() -> None:
    reading, drawing = twins(memory_draw=True)
    clip = clip_of(4)[..., :32, :32]
    first = drawing(clip)
    torch.manual_seed(9)
    assert torch.equal(drawing(clip), first)
    assert not torch.equal(reading(clip), first)


def test_a_threshold_is_one_half_wherever_masks_are_read() -> None:
    usual, higher = twins(threshold=0.6)
    clip = clip_of(2)[..., :32, :32]
    with torch.inference_mode():
        expected = usual(clip).sigmoid() >= 0.6
        assert torch.equal(higher(clip).sigmoid() >= 0.5, expected) and expected.float().mean() < 1


def test_clips_begin_where_they_are_told_to(network: E3SAM2) -> None:
    coarse = torch.full((3, 1, 4, 4), -9.0)
    coarse[1] = 9.0
    first = Prompting(SIZE, automatic="centre", first=True)
    assert network.prompting.begin([coarse], [[0, 1, 2]], None)[0].frame == 1
    (start,) = first.begin([coarse], [[0, 1, 2]], None)
    assert (start.frame, start.points.tolist(), start.labels) == (0, [[31.5, 31.5]], (1,))


def test_both_ways_are_walked_together_and_the_longest_goes_on() -> None:
    assert walking_steps([2], [5], both_ways=True) == [[(0, 2)], [(0, 3), (0, 1)], [(0, 4), (0, 0)]]
    assert walking_steps([2], [4], both_ways=False) == [[(0, 2)], [(0, 3)], [(0, 1)], [(0, 0)]]
    assert walking_steps([0], [1], both_ways=True) == [[(0, 0)]]
    steps = walking_steps([0, 3], [2, 5], both_ways=True)
    assert steps == [[(0, 0), (1, 3)], [(1, 2), (0, 1), (1, 4)], [(1, 1)], [(1, 0)]]
    assert len(walking_steps([6], [12], both_ways=True)) == 7


# Size and cost -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trainable", "millions"),
    [
        ("adapters", 4.2),
        ("decoder", 8.3),
        ("memory", 15.3),
        ("all_but_trunk", 15.6),
        ("last_stage", 19.5),
        ("adapted", 20.1),
        ("all", 42.5),
    ],
)
def test_trainable_parts_are_as_large_as_they_should_be(trainable: str, millions: float) -> None:
    with torch.device("meta"):
        tiny = build_network("e3sam2", size=(256, 256), trainable=trainable)
    assert count_parameters(tiny, trainable_only=True) / 1e6 == pytest.approx(millions, abs=0.4)


@pytest.mark.parametrize("variant", ["small", "base_plus", "large"])
def test_every_variant_trains_and_follows(variant: str) -> None:
    """On the meta device, where the larger ones cost little; the tests above are of the tiny one."""
    with torch.device("meta"):
        made = build_network("sam2", size=(SIZE, SIZE), variant=variant)
        clip, prompts = torch.empty(1, 2, 1, SIZE, SIZE), Prompts.given_boxes(torch.zeros(1, 4), [1])
        assert made.train()(clip, prompts).logits.shape == made.eval()(clip, prompts).shape == clip.shape
    total, frozen = {"small": (46.1, 34.1), "base_plus": (81.0, 69.0), "large": (224.5, 212.3)}[variant]
    assert count_parameters(made) / 1e6 == pytest.approx(total, abs=0.3)
    assert (count_parameters(made) - count_parameters(made, trainable_only=True)) / 1e6 == pytest.approx(
        frozen, abs=0.5
    )


def test_plain_sam2_has_nothing_besides_but_the_coarse_head() -> None:
    with torch.device("meta"):
        plain = build_network("sam2", size=(SIZE, SIZE), trainable="adapters")
    assert plain.encoder.adapters is None
    assert plain.edges is None
    assert plain.settings.memory == "fifo" and plain.settings.memory_frames == 7 and plain.prompting.later is None
    assert {name for name, p in plain.named_parameters() if p.requires_grad} == {
        f"prompting.locator.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")
    }


def test_it_can_be_measured_without_values(network: E3SAM2) -> None:
    """On the meta device, where every frame is remembered."""
    with torch.device("meta"):
        empty = build_narrow().train()
        prompts = Prompts(("auto", "given"), torch.zeros(2, 2), (0, 1))
        output = empty(torch.empty(2, 3, 1, SIZE, SIZE), prompts)
    assert output.logits.shape == (2, 3, 1, SIZE, SIZE)
    assert count_parameters(empty) == count_parameters(network)
    shape = (1, 2, 1, SIZE, SIZE)
    assert count_gmac(empty, shape) == pytest.approx(count_gmac(network, shape), rel=1e-6)
