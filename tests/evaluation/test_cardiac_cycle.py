from __future__ import annotations

import numpy as np
import pytest

from echoplan.errors import EchoPlanError
from echoplan.evaluation import find_phases


def curve(seconds, frame_time_ms, *, beat_s=0.9, start=0.0, noise=0.0, seed=0):
    """Areas of a heart that is fullest at whole numbers of beats and emptiest 0.38 beats later."""
    time = np.arange(0, seconds, frame_time_ms / 1000) + start * beat_s
    phase = (time / beat_s) % 1
    filling = (1 - np.cos(np.pi * (phase - 0.38) / 0.62)) / 2
    shape = np.where(phase < 0.38, (1 + np.cos(np.pi * phase / 0.38)) / 2, filling)
    return 1000 + 1200 * shape + np.random.default_rng(seed).normal(0, noise, len(time))


@pytest.mark.parametrize("frame_time_ms", [10, 20, 33, 50])
@pytest.mark.parametrize("known", [True, False])
def test_every_beat_is_found(frame_time_ms, known):
    area = curve(3.7, frame_time_ms, noise=25)
    phases = find_phases(area, frame_time_ms=frame_time_ms if known else None)
    assert phases.complete
    assert len(phases.beats) == 4
    for number, (ed, es) in enumerate(phases.beats):
        assert ed * frame_time_ms == pytest.approx(900 * number, abs=90)
        assert es * frame_time_ms == pytest.approx(900 * (number + 0.38), abs=90)
    assert (phases.ed_frame, phases.es_frame) in phases.beats


@pytest.mark.parametrize("frame_time_ms", [10, 50])
def test_fast_and_slow_hearts(frame_time_ms):
    assert len(find_phases(curve(4, frame_time_ms, beat_s=0.45), frame_time_ms=frame_time_ms).beats) in (8, 9)
    assert len(find_phases(curve(4.9, frame_time_ms, beat_s=1.6), frame_time_ms=frame_time_ms).beats) == 3


@pytest.mark.parametrize("frames", [5, 10, 18, 40])
def test_half_a_beat_keeps_its_ends_and_says_so(frames):
    area = np.cos(np.linspace(0, np.pi, frames)) * 500 + 1500
    for time in (None, 20.0):
        phases = find_phases(area, frame_time_ms=time)
        assert (phases.ed_frame, phases.es_frame) == (0, frames - 1)
        assert not phases.complete
        assert "less than one" in phases.note
        backwards = find_phases(area[::-1], frame_time_ms=time)
        assert (backwards.ed_frame, backwards.es_frame) == (frames - 1, 0)


def test_one_whole_beat_from_the_middle():
    phases = find_phases(curve(0.95, 20, start=0.7), frame_time_ms=20)
    assert phases.complete
    assert phases.beats == ((phases.ed_frame, phases.es_frame),)
    assert phases.ed_frame == pytest.approx(13.5, abs=1.5)
    assert phases.es_frame == pytest.approx(30.6, abs=2)


def test_a_cut_off_systole_is_no_beat():
    phases = find_phases(curve(1.0, 20), frame_time_ms=20)
    assert phases.beats == ((0, 17),) or len(phases.beats) == 1
    assert phases.es_frame == pytest.approx(17, abs=2)


def test_frames_without_a_cavity_are_passed_over():
    area = curve(1.8, 20)
    area[[5, 17, 18, 30]] = [0, np.nan, 0, 0]
    phases = find_phases(area, frame_time_ms=20)
    assert all(area[frame] > 0 for beat in phases.beats for frame in beat)
    assert "4 of 90 frames have no cavity" in phases.note
    assert len(phases.beats) == 2


def test_a_single_bad_frame_is_no_extremum():
    area = curve(1.8, 20)
    area[40] = 150.0
    assert 40 not in [es for _, es in find_phases(area, frame_time_ms=20).beats]


def test_short_clips():
    assert find_phases([3.0, 5.0]).beats == ((1, 0),)
    assert find_phases([5.0, 3.0]).beats == ((0, 1),)
    one = find_phases([7.0])
    assert (one.ed_frame, one.es_frame, one.complete) == (0, 0, False)
    assert "one frame" in one.note
    assert find_phases([0.0, 0.0, 4.0, 0.0]).beats == ((2, 2),)


def test_a_still_heart_is_reported():
    assert "hardly changes" in find_phases(np.full(40, 900.0)).note


@pytest.mark.parametrize("area", [[], [0.0, 0.0], [float("nan")] * 3])
def test_nothing_to_find(area):
    with pytest.raises(EchoPlanError):
        find_phases(area)


def test_frame_time_must_be_positive():
    with pytest.raises(EchoPlanError):
        find_phases([1.0, 2.0, 3.0], frame_time_ms=0.0)
