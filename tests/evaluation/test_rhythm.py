"""Beats of synthetic hearts: rates, drift, noise, premature beats, clips that begin anywhere."""

from __future__ import annotations

import numpy as np
import pytest

from echoplan.evaluation import PhaseErrors, Phases, find_phases, phase_errors


def heart(cycles_s, fps, *, start=0.0, stop=None, noise=0.0, drift=0.0, seed=0):
    """Areas (T,), and the true end-diastoles and end-systoles as (fractional) frames.

    Systole lasts 0.15 s and a fifth of the cycle, as in people, and never beyond 0.38 of it.

    Args:
        cycles_s: length of each beat.
        start, stop: seconds of the first and last frame.
        noise: SD, and drift: rise over the clip, as shares of the stroke.
    """
    cycles = np.asarray(cycles_s, dtype=float)
    begins = np.concatenate(([0.0], np.cumsum(cycles)))
    systole = np.minimum(0.38 * cycles, 0.15 + 0.2 * cycles)
    time = np.arange(start, begins[-1] if stop is None else stop, 1 / fps)
    beat = np.clip(np.searchsorted(begins, time, side="right") - 1, 0, len(cycles) - 1)
    since = time - begins[beat]
    emptying = (1 + np.cos(np.pi * since / systole[beat])) / 2
    filling = (1 - np.cos(np.pi * (since - systole[beat]) / (cycles - systole)[beat])) / 2
    shape = np.where(since < systole[beat], emptying, filling)
    shape += drift * (time - start) / (time[-1] - start) + np.random.default_rng(seed).normal(0, noise, len(time))
    return 1000 + 1200 * shape, (begins - start) * fps, (begins[:-1] + systole - start) * fps


@pytest.mark.parametrize("fps", [20, 33, 50, 80])
@pytest.mark.parametrize("bpm", [40, 60, 85, 110, 150])
@pytest.mark.parametrize(("noise", "drift"), [(0, 0), (0.03, 0), (0.03, 0.15), (0.02, -0.3)])
def test_regular_hearts(fps, bpm, noise, drift):
    for beats in (1, 2, 3, 5):
        # Both ends of a single beat are its end-diastoles: beyond 15 % of the range the lower one is not taken for one.
        rise = drift if beats > 1 else drift / 2
        area, ed, es = heart([60 / bpm] * beats, fps, noise=noise, drift=rise, seed=beats)
        phases = find_phases(area, frame_time_ms=1000 / fps)
        tolerance = max(2.5, fps * max(0.06, 0.1 * 60 / bpm))  # frames; 60 ms, or 10 % of a slow cycle
        assert len(phases.beats) == beats
        for found, true_ed, true_es in zip(phases.beats, ed, es, strict=False):
            assert found == pytest.approx((true_ed, true_es), abs=tolerance)
        assert "irregular" not in phases.note
        if beats == 1:
            continue
        assert phases.heart_rate_bpm == pytest.approx(bpm, rel=0.1)
        if beats == 5:
            assert phases.heart_rate_bpm == pytest.approx(bpm, rel=0.04)


@pytest.mark.parametrize("fps", [20, 50, 80])
@pytest.mark.parametrize("bpm", [45, 70, 95])
@pytest.mark.parametrize("beats", [3, 5])
def test_a_premature_beat_is_flagged_with_its_numbers(fps, bpm, beats):
    cycles = np.full(beats, 60 / bpm)
    cycles[1:3] *= 0.62, 1.35
    area, *_ = heart(cycles, fps, noise=0.02, seed=beats)
    phases = find_phases(area, frame_time_ms=1000 / fps)
    assert phases.rhythm.irregular
    assert phases.rhythm.variation > 0.2
    assert f"cycles of {phases.rhythm.shortest:.2f} to {phases.rhythm.longest:.2f} s" in phases.note
    assert "limit 20 %" in phases.note
    assert find_phases(area).heart_rate_bpm is None


@pytest.mark.parametrize("fps", [20, 50])
def test_parts_of_beats_are_named(fps):
    area, ed, es = heart([0.9] * 3, fps, start=0.12)
    phases = find_phases(area, frame_time_ms=1000 / fps)
    assert len(phases.beats) == 2
    ((first, last),) = phases.partial
    assert (first, last) == pytest.approx((0, es[0]), abs=1.5)
    assert f"frames 0 to {last} show a part of a beat" in phases.note
    area, ed, es = heart([0.9] * 3, fps, stop=2.0)
    phases = find_phases(area, frame_time_ms=1000 / fps)
    assert len(phases.beats) == 2
    assert phases.partial == ((pytest.approx(ed[2], abs=1.5), len(area) - 1),)


def test_whole_clips_have_no_parts_and_one_cycle_no_variation():
    area, *_ = heart([0.9] * 2, 50)
    phases = find_phases(area, frame_time_ms=20)
    assert phases.partial == ()
    assert phases.note == ""
    assert phases.rhythm.words == ""
    assert find_phases(heart([0.9], 50)[0], frame_time_ms=20).heart_rate_bpm is None


def test_unknown_frame_time_gives_cycles_in_frames():
    area, *_ = heart([0.8, 0.45, 1.1, 0.8], 50)
    phases = find_phases(area)
    assert not phases.rhythm.in_seconds
    assert phases.rhythm.longest == pytest.approx(50 * 0.95, abs=12)
    assert "frames, a difference" in phases.note


def test_found_phases_are_compared_with_the_datasets_own():
    phases = Phases(2, 9, ((2, 9), (30, 41)), True)
    assert phase_errors(phases, 31, 40) == PhaseErrors(-1, 1)
    assert phase_errors(phases, 0, 10, frame_time_ms=25.0) == PhaseErrors(2, -1, 50.0, -25.0)
