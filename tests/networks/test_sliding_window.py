"""Windows over clips of any length."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn

from echoplan.errors import EchoPlanError
from echoplan.experiment_planning.memory import MemoryTracker
from echoplan.networks.batches import PIXELS_AT_ONCE, BatchSize, are_enough, in_groups, windows_together
from echoplan.networks.sliding_window import segment_clip, segment_parts, time_weights, time_windows
from echoplan.preprocessing.clip import NormalisedFrames


class Threshold(nn.Module):
    """Logits that depend on each frame alone."""

    def __init__(self, classes: int = 1) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.arange(1.0, classes + 1))
        self.calls: list[tuple[int, ...]] = []

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        self.calls.append(tuple(clip.shape))
        return clip * self.scale.view(1, 1, -1, 1, 1)


class TimeMean(nn.Module):
    """Logits that depend on the whole window."""

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        return clip + clip.mean(dim=1, keepdim=True)


class Walker(Threshold):
    """A streaming network that walks backwards and carries a memory."""

    def stream(self, frames: torch.Tensor):
        memory = torch.zeros(frames.shape[1:])
        for index in reversed(range(len(frames))):
            memory = 0.5 * memory + frames[[index]][0]
            yield index, (memory * self.scale.view(-1, 1, 1))


class Caravan(Walker):
    """The same that walks clips abreast; in the third step a GPU's memory is too small for more than `most` of them."""

    most = 16

    def streams(self, frames, clips):
        self.calls.append(tuple(clips))
        ends = np.cumsum(clips)
        walks = [self.stream(frames[end - length : end]) for length, end in zip(clips, ends, strict=True)]
        for step in range(max(clips)):
            if step == 2 and len(clips) > self.most:
                raise torch.OutOfMemoryError("CUDA")
            for walk, length, end in zip(walks, clips, ends, strict=True):
                if step < length:
                    index, logits = next(walk)
                    yield end - length + index, logits


@pytest.mark.parametrize("length", [1, 2, 7, 10, 11, 19, 20, 21, 64])
@pytest.mark.parametrize("window", [1, 3, 10])
@pytest.mark.parametrize("stride", [1, 2, 5])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8])
def test_windows_cover_every_frame_with_weights_that_sum_to_one(length, window, stride, overlap):
    windows = time_windows(length, window=window, stride=stride, overlap=overlap)
    total = np.zeros(length)
    for indices, weights in zip(windows, time_weights(windows, length), strict=True):
        assert len(indices) <= window and (weights > 0).all()
        assert len(set(np.diff(indices))) <= 1
        np.add.at(total, indices, weights)
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_windows_take_every_stride_th_frame_from_every_phase():
    windows = time_windows(40, window=10, stride=2, overlap=0.5)
    assert [w.tolist() for w in windows[:3]] == [
        list(range(0, 20, 2)), list(range(10, 30, 2)), list(range(20, 40, 2))
    ]  # fmt: skip
    assert windows[3][0] == 1 and len(windows) == 6


def test_the_stride_shrinks_with_the_clip():
    assert [w.tolist() for w in time_windows(10, window=10, stride=4)] == [list(range(10))]
    halves = time_windows(17, window=10, stride=4)  # one window spans the clip at stride 2, so 4 would skip too much
    assert [w.tolist() for w in halves] == [list(range(0, 17, 2)), list(range(1, 17, 2))]


@pytest.mark.parametrize("length", [1, 4, 10])
def test_a_short_clip_equals_the_network_itself(length):
    frames = torch.randn(length, 6, 5)
    network = TimeMean()
    expected = network(frames[None, :, None]).sigmoid()[0].swapaxes(0, 1).numpy()
    got = segment_clip(network, frames, window=10, classes=1, stride=3)
    assert got.shape == (1, length, 6, 5) and got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_overlapping_windows_are_averaged_with_triangles():
    frames = torch.randn(6, 2, 2)
    got = segment_clip(TimeMean(), frames, window=4, classes=1, overlap=0.5)
    first = (frames[0:4] + frames[0:4].mean(0)).sigmoid().numpy()
    second = (frames[2:6] + frames[2:6].mean(0)).sigmoid().numpy()
    np.testing.assert_allclose(got[0, 1], first[1], atol=1e-6)
    np.testing.assert_allclose(got[0, 2], (2 * first[2] + 1 * second[0]) / 3, atol=1e-6)
    np.testing.assert_allclose(got[0, 3], (1 * first[3] + 2 * second[1]) / 3, atol=1e-6)


def test_a_frame_network_gets_batches_of_frames():
    network = Threshold()
    frames = torch.randn(7, 4, 4)
    got = segment_clip(network, frames, window=1, classes=1, stride=5, batch=3)
    np.testing.assert_allclose(got[0], frames.sigmoid().numpy(), atol=1e-6)
    assert network.calls == [(3, 1, 1, 4, 4), (3, 1, 1, 4, 4), (1, 1, 1, 4, 4)]


def test_batches_do_not_change_the_result():
    frames = torch.randn(31, 4, 4)
    one, many = (segment_clip(TimeMean(), frames, window=5, classes=1, stride=2, batch=b) for b in (1, 8))
    np.testing.assert_allclose(one, many, atol=1e-6)


def test_softmax_over_several_classes():
    frames = torch.randn(5, 3, 3)
    got = segment_clip(Threshold(3), frames, window=5, classes=3)
    expected = torch.stack([frames, 2 * frames, 3 * frames]).softmax(0).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_mirroring_averages_over_flips_and_is_undone():
    class Gradient(nn.Module):
        def forward(self, clip: torch.Tensor) -> torch.Tensor:
            return clip + torch.arange(clip.shape[-1]) + 10 * torch.arange(clip.shape[-2])[:, None]

    frames = torch.randn(2, 4, 4)
    got = segment_clip(Gradient(), frames, window=2, classes=1, mirror_axes=("horizontal", "vertical"))
    rows, columns = torch.arange(4)[:, None], torch.arange(4)
    expected = sum((frames + c + 10 * r).sigmoid() for r in (rows, 3 - rows) for c in (columns, 3 - columns)) / 4
    np.testing.assert_allclose(got[0], expected.numpy(), atol=1e-6)


def test_evaluation_mode_inside_and_the_old_mode_after():
    network = nn.Sequential(nn.Dropout(0.9), Threshold()).train()
    frames = torch.ones(3, 4, 4)
    np.testing.assert_allclose(segment_clip(network, frames, window=3, classes=1), frames.sigmoid()[None], atol=1e-6)
    assert network.training


def test_memory_grows_with_the_output_alone():
    with MemoryTracker():  # imports what is imported when it is first needed: very slowly, where memory is traced
        torch.zeros(1)

    def peak(length: int) -> int:
        frames = torch.zeros(length, 32, 32)
        tracemalloc.start()
        with MemoryTracker() as tensors:  # which Python knows nothing of
            segment_clip(Threshold(), frames, window=10, classes=1)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size + tensors.peak

    extra = peak(640) - peak(64)
    assert extra < 1.2 * (640 - 64) * 32 * 32 * 4


@pytest.mark.parametrize(("stride", "held"), [(1, 10), (3, 30)])
def test_parts_come_as_soon_as_no_window_touches_them_again(stride, held):
    network, frames = Threshold(), torch.randn(200, 4, 4)
    seen = []
    for indices, probabilities in segment_parts(network, frames, window=10, classes=1, stride=stride):
        np.testing.assert_allclose(probabilities[0], frames[indices].sigmoid(), atol=1e-6)
        assert not torch.is_inference_mode_enabled()  # the caller's own tensors are not touched
        seen += indices.tolist()
        ran = 5 * stride * (len(network.calls) // stride + 1)  # frames up to which windows have begun
        assert len(seen) >= min(ran, 200) - held - 10 * stride
    assert sorted(seen) == list(range(200))
    assert max(abs(frame - place) for place, frame in enumerate(seen)) < held  # from the first frame to the last


def test_a_stream_that_leaves_out_frames_is_named():
    class Forgetful(Walker):
        def stream(self, frames):
            yield from ((index, frames[[index]][0]) for index in range(len(frames) - 3))

    with pytest.raises(EchoPlanError, match="Forgetful left out 3 frames"):
        segment_clip(Forgetful(), torch.randn(9, 4, 4), window=1, classes=1)


def test_a_stream_sees_normalised_frames_a_few_at_a_time():
    asked = []

    class Frames(NormalisedFrames):
        def __getitem__(self, indices):
            asked.append(super().__getitem__(indices).numel() // 16)
            return super().__getitem__(indices)

    frames = np.random.default_rng(0).integers(0, 256, (40, 4, 4)).astype(np.uint8)
    found = segment_clip(Walker(), Frames([frames], [(0.0, 1.0)], "unit"), window=1, classes=1)
    np.testing.assert_array_equal(found, segment_clip(Walker(), torch.from_numpy(frames) / 255, window=1, classes=1))
    assert max(asked) == 1


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (5, 2)])
def test_clips_that_share_batches_are_found_as_if_alone(window, stride):
    network, clips = TimeMean(), [torch.randn(length, 4, 4) for length in (7, 3, 12)]
    options = {"window": window, "stride": stride, "classes": 1, "batch": 16}
    together = segment_clip(network, torch.cat(clips), clips=[7, 3, 12], **options)
    alone = [segment_clip(network, clip, **options) for clip in clips]
    # not to the bit: the sigmoid of a value depends on its place in the vector registers
    np.testing.assert_allclose(together, np.concatenate(alone, axis=1), rtol=1e-6)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")]
)
def test_a_batch_that_memory_is_too_small_for_is_halved_from_then_on(error):
    class Large(Threshold):
        most = 3

        def forward(self, clip):
            logits = super().forward(clip)
            if len(clip) > self.most:
                raise error
            return logits

    network, frames, batch = Large(), torch.randn(20, 4, 4), BatchSize(8)
    found = segment_clip(network, frames, window=1, classes=1, batch=batch)
    np.testing.assert_array_equal(found, frames.sigmoid()[None])
    assert [shape[0] for shape in network.calls] == [8, 4, 2, 2, 4, 2, 2, *[2] * 6] and batch.windows == 2
    with pytest.raises(RuntimeError, match=str(error)):  # a single window is too large
        Large.most = 0
        segment_clip(network, frames, window=1, classes=1)


def test_a_network_with_the_wrong_output_is_named():
    with pytest.raises(EchoPlanError, match="Threshold gave"):
        segment_clip(Threshold(3), torch.zeros(2, 4, 4), window=2, classes=2)


@pytest.mark.parametrize(
    ("most", "calls", "left"),
    [(16, [(2, 5, 1, 4)], 8), (3, [(2, 5, 1, 4), (2, 5), (1, 4)], 2), (1, [(2, 5, 1, 4), (2, 5)], 1)],
)
@pytest.mark.parametrize("mirror_axes", [(), ("horizontal",)])
def test_clips_that_are_walked_abreast_are_found_as_if_alone(monkeypatch, most, calls, left, mirror_axes):
    monkeypatch.setattr("echoplan.networks.sliding_window._FRAMES_OF_A_STREAM", 1)  # some are known when memory ends
    network, clips = Caravan(), [torch.randn(length, 4, 6) for length in (2, 5, 1, 4)]
    network.most, batch = most, BatchSize(8)
    options = {"window": 1, "classes": 1, "mirror_axes": mirror_axes}
    parts = [*segment_parts(network, torch.cat(clips), clips=[2, 5, 1, 4], batch=batch, **options)]
    assert all((np.diff(frames) > 0).all() for frames, _ in parts)
    places = np.concatenate([frames for frames, _ in parts])
    assert sorted(places) == list(range(12))
    together = torch.cat([found for _, found in parts], dim=1)[:, np.argsort(places)]
    alone = np.concatenate([segment_clip(Walker(), clip, **options) for clip in clips], axis=1)
    np.testing.assert_allclose(together, alone, atol=1e-6)
    if not mirror_axes:
        assert network.calls == calls and batch.windows == left


def test_a_stream_that_knows_no_company_walks_clip_after_clip():
    clips = [torch.randn(length, 4, 6) for length in (2, 5)]
    together = segment_clip(Walker(), torch.cat(clips), clips=[2, 5], window=1, classes=1, batch=8)
    np.testing.assert_array_equal(together[:, 2:], segment_clip(Walker(), clips[1], window=1, classes=1))
    with pytest.raises(ValueError, match="one clip at a time"):
        segment_clip(Walker(), torch.cat(clips), clips=[2, 5], window=1, classes=1, prompts=[None])


@pytest.mark.parametrize(
    ("network", "size", "cpu", "gpu"),
    [(Caravan, 256, 2, 16), (Caravan, 112, 10, 16), (Caravan, 1024, 1, 1), (Walker, 64, 1, 1), (Threshold, 256, 1, 2)],
)
def test_so_many_clips_of_20_frames_keep_a_device_busy(network, size, cpu, gpu):
    for device, expected in (("cpu", cpu), ("meta", gpu)):  # which is no CPU, either
        made = network().to(device)
        clips = [(20, size, size)] * 40
        groups = in_groups(clips, share=lambda *_: True, enough=lambda group, made=made: are_enough(made, group))
        assert len(next(groups)) == expected
        if network is Caravan:
            assert windows_together(made, frames=10, size=(size, size)) == expected


def test_neither_long_clips_nor_those_of_another_size_wait_for_company():
    network, long = Caravan().to("meta"), (8 * PIXELS_AT_ONCE // 64**2, 64, 64)
    groups = in_groups(
        [long] * 10 + [(20, 96, 96)],
        share=lambda one, other: one[1:] == other[1:],
        enough=lambda group: are_enough(network, group),
    )
    assert [len(group) for group in groups] == [4, 4, 2, 1]


@pytest.mark.parametrize(
    "arguments", [{"window": 0}, {"window": 2, "overlap": 1.0}, {"window": 2, "mirror_axes": ("depth",)}]
)
def test_arguments_out_of_range(arguments):
    with pytest.raises(ValueError):
        segment_clip(Threshold(), torch.zeros(2, 4, 4), classes=1, **arguments)


def test_a_streaming_network_walks_the_clip_itself():
    frames = torch.randn(5, 4, 6)
    found = segment_clip(Walker(2), frames, window=3, classes=2, stride=2)
    last = (frames[4][None] * torch.tensor([1.0, 2.0]).view(2, 1, 1)).softmax(dim=0)
    np.testing.assert_allclose(found[:, 4], last, atol=1e-6)
    before = ((0.5 * frames[4] + frames[3])[None] * torch.tensor([1.0, 2.0]).view(2, 1, 1)).softmax(dim=0)
    np.testing.assert_allclose(found[:, 3], before, atol=1e-6)


def test_a_stream_is_averaged_over_flips_and_checked():
    class Lopsided(Walker):
        def stream(self, frames):
            yield from ((i, frame * torch.linspace(1, 2, frame.shape[-1])) for i, frame in enumerate(frames[:]))

    frames = torch.randn(2, 4, 6)
    plain, flipped = torch.linspace(1, 2, 6), torch.linspace(2, 1, 6)
    expected = ((frames * plain).sigmoid() + (frames * flipped).sigmoid()) / 2
    found = segment_clip(Lopsided(), frames, window=1, classes=1, mirror_axes=("horizontal",))
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    with pytest.raises(EchoPlanError, match="gave"):
        segment_clip(Lopsided(), frames, window=1, classes=2)
