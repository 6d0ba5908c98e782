"""Clips segmented part by part: the same as whole clips, in memory that hardly grows."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from echoplan.experiment_planning.memory import MemoryTracker
from echoplan.inference import EchoPredictor
from echoplan.inference.clip_labels import PackedLabels
from echoplan.inference.ensemble import PredictorMember, run_networks
from echoplan.networks.sliding_window import segment_clip
from echoplan.preprocessing import normalise
from echoplan.preprocessing.probabilities import ClipProbabilities, average

from ..pretended_gpu import GPU, pretended_gpu

FRAMES = 23


class InWindows(nn.Module):
    """Logits that depend on the whole window."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.1 * seed))
        self.start = 7 * seed
        self.seen = 0

    def forward(self, clip):
        self.seen += 1
        return 6 * (0.8 * clip + 0.2 * clip.mean(dim=1, keepdim=True) - self.shift)


class Walking(InWindows):
    """A stream from a frame of its own to the end, then back to the beginning."""

    def stream(self, frames):
        self.seen += 1
        start, memory = self.start % len(frames), 0.0
        for index in (*range(start, len(frames)), *reversed(range(start))):
            memory = 0.2 * memory + 0.8 * frames[[index]][0]
            yield index, 6 * (memory - self.shift)


class Caravan(Walking):
    """The same for clips abreast, each in turn a frame further."""

    def streams(self, frames, clips):
        walks, first = [], 0
        for length in clips:
            walks.append((first, self.stream(frames[first : first + length])))
            first += length
        while walks:
            for walk in [*walks]:
                if (found := next(walk[1], None)) is None:
                    walks.remove(walk)
                else:
                    yield walk[0] + found[0], found[1]


ENSEMBLES = {
    "one model": [(InWindows, (64, 64))],
    "one that walks": [(Walking, (64, 64))],
    "one that walks clips abreast": [(Caravan, (64, 64))],
    "two on one grid": [(InWindows, (64, 64)), (InWindows, (64, 64))],
    "two on two grids": [(InWindows, (64, 64)), (InWindows, (32, 48))],
    "both kinds": [(Walking, (64, 64)), (InWindows, (64, 64))],
}


@pytest.fixture
def make_members(folders, make_model):
    """`make_members([(network class, size), ...], folds)` -> members whose networks differ from each other."""

    def make(kinds, folds=3) -> list[PredictorMember]:
        members = []
        for number, (kind, size) in enumerate(kinds):
            model = make_model(
                folders.results / str(number),
                size=size,
                frames=5 + number,
                folds=range(folds),
                thresholds=[0.5] * folds,
            )
            member = PredictorMember.load(model, folds=None, device=torch.device("cpu"), trust_code=True)
            members.append(replace(member, networks=tuple(kind(1 + 3 * number + fold) for fold in range(folds))))
        return members

    return make


def whole(member: PredictorMember, network: nn.Module, clip) -> ClipProbabilities:
    """One network's probabilities, all at once."""
    frames = torch.from_numpy(normalise(clip.frames, *clip.statistics, clip.plan.normalisation))
    found = segment_clip(network, frames, classes=1, window=clip.plan.frames, stride=clip.plan.window_stride)
    return ClipProbabilities(found, clip.geometry)


@pytest.mark.parametrize("kinds", ENSEMBLES.values(), ids=ENSEMBLES)
def test_parts_are_the_averages_of_whole_clips(make_members, make_long_heart, kinds):
    members = make_members(kinds)
    clips = [member.prepare(make_long_heart(FRAMES), None) for member in members]
    found: dict[int | None, dict[int, np.ndarray]] = {}
    for part in run_networks(members, [clips], (4, 5, 6), mirroring=False, autocast=False):
        for place, frame in enumerate(part.frames):
            assert frame not in found.setdefault(part.fold, {})  # each comes once
            found[part.fold][frame] = part.values[:, place].numpy()
    assert all(network.seen for member in members for network in member.networks)
    walked = [network.seen for member in members for network in member.networks if isinstance(network, Walking)]
    assert set(walked) <= {1}
    by_member = [
        [whole(member, network, clip) for network in member.networks]
        for member, clip in zip(members, clips, strict=True)
    ]
    expected = {fold: average(own[fold - 4] for own in by_member) for fold in (4, 5, 6)}
    expected[None] = average(average(own) for own in by_member)
    assert found.keys() == expected.keys()
    for fold, probabilities in expected.items():
        assert sorted(found[fold]) == list(range(FRAMES))
        together = np.stack([found[fold][frame] for frame in range(FRAMES)], axis=1)
        np.testing.assert_allclose(together, probabilities.values, atol=2e-6)
        assert together.std() > 0.02


@pytest.mark.parametrize("kinds", ENSEMBLES.values(), ids=ENSEMBLES)
def test_clips_of_any_lengths_are_found_together_as_if_alone(make_members, make_long_heart, kinds):
    predictor = EchoPredictor(make_members(kinds))
    clips = [predictor.prepare(make_long_heart(frames)) for frames in (FRAMES, 4, 11)]
    assert predictor.share_batches(clips[0], clips[1]) is all(kind is not Walking for kind, _ in kinds)
    alone = [predictor.find([clip], keep_probabilities=np.float32)[0] for clip in clips]
    together = predictor.find(clips, keep_probabilities=np.float32)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one.probabilities.values, other.probabilities.values, atol=2e-6)
        assert one.on_grid.keys() == other.on_grid.keys() == {None, 0, 1, 2}
        for fold, labels in one.on_grid.items():
            np.testing.assert_array_equal(labels.unpacked(), other.on_grid[fold].unpacked())


@pytest.mark.parametrize("kinds", ENSEMBLES.values(), ids=ENSEMBLES)
def test_no_window_and_no_frame_waits_for_a_gpu(make_members, make_long_heart, kinds, monkeypatch):
    monkeypatch.setattr("echoplan.networks.batches.PIXELS_AT_ONCE", 1)  # so that windows come one by one
    members = make_members(kinds, folds=1)
    clips = [member.prepare(make_long_heart(FRAMES), None) for member in members]
    with pretended_gpu() as waits:
        members = [replace(member, networks=tuple(each.to(GPU) for each in member.networks)) for member in members]
        waits.clear()
        parts = list(run_networks(members, [clips], (), mirroring=True, autocast=None))
        assert not waits
    assert sum(len(part.frames) for part in parts) == FRAMES and all(part.values.is_cuda for part in parts)


@pytest.fixture
def make_long_heart(heart):
    """`make_long_heart(frames)` -> the clip, beat after beat."""

    def make(frames: int):
        return replace(heart.clip, frames=heart.clip.frames[np.arange(frames) % len(heart.clip.frames)])

    return make


@pytest.mark.parametrize("kind", [InWindows, Walking])
def test_memory_hardly_grows_with_the_clip(make_members, make_long_heart, kind, monkeypatch):
    monkeypatch.setattr("echoplan.networks.batches.PIXELS_AT_ONCE", 8 * 64 * 80)  # so that 36 frames are many
    predictor = EchoPredictor(make_members([(kind, (64, 80))]))
    for network in predictor.members[0].networks:
        nn.init.constant_(network.shift, 0.3)  # all that walk begin in one frame

    with MemoryTracker():  # imports what is imported when it is first needed: very slowly, where memory is traced
        torch.zeros(1)

    def peak(frames: int, **options) -> int:
        prepared = predictor.prepare(make_long_heart(frames))
        tracemalloc.start()
        with MemoryTracker() as tensors:  # which Python knows nothing of
            predictor.segment(prepared, **options)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size + tensors.peak

    peak(12)  # what is cached
    pixels = (180 - 36) * 64 * 80
    # The mask, four opinions of a bit a pixel and their phases (2 of 12 frames), for a moment one opinion's labels and
    # cavity. One network's probabilities alone would be 4.
    most = 1 + 4 * (1 / 8 + 2 / 12) + 2 + 0.3
    assert (peak(180) - peak(36)) / pixels < most
    kept = (peak(180, keep_probabilities=np.float16) - peak(36, keep_probabilities=np.float16)) / pixels
    assert kept < most + 2


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 9])
def test_packed_labels_come_back(classes):
    labels = np.random.default_rng(classes).integers(0, max(2, classes), (7, 5, 9)).astype(np.uint8)
    packed = PackedLabels(labels.shape, classes)
    for frames in ([3, 0], [1, 2, 4], [6, 5]):
        packed.put(np.array(frames), torch.from_numpy(labels[frames]))
    np.testing.assert_array_equal(packed.unpacked(), labels)


def test_a_prediction_needs_probabilities(make_members, heart):
    predictor = EchoPredictor(make_members([(InWindows, (64, 64))], folds=1))
    found = predictor.segment(predictor.prepare(heart.clip))
    assert found.probabilities is None
    with pytest.raises(ValueError, match="keep_probabilities"):
        predictor.conclude(heart.clip, found)
