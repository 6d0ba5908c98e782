"""Randomised phantoms: their truth, their variety, and that the plain ones stay what they were."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import label as components

from echoplan.dataset import EchoDataset
from echoplan.datasets.phantom import PhantomSettings, make_patient, volume_tracing
from echoplan.datasets.phantom.heart import Cut, Pose, random_heart
from echoplan.datasets.phantom.overlays import draw_overlays
from echoplan.datasets.phantom.randomised import varied_heart
from echoplan.datasets.phantom.shape import Shape, balanced_width
from echoplan.scripts import make_phantom

COUNTS = [[32043, 4244, 3634, 3087], [31916, 4622, 3525, 2945]]
GREY = [2033364, 1990804]
SPREAD = [32.573897141729915, 26.205028329501953]
VARIED = PhantomSettings(size=(144, 176), frames=2, randomised=True)


@pytest.fixture(scope="module")
def patients():
    return [make_patient(seed, VARIED) for seed in range(8)]


def test_the_plain_phantom_stays_what_it_was():
    """Recorded before there were others. Grey levels as sums, for an exponential may differ by a bit between CPUs."""
    patient = make_patient(0, PhantomSettings(size=(112, 128), frames=3))
    counts = [np.bincount(clip.labels.ravel(), minlength=4).tolist() for clip in patient.clips]
    assert counts == COUNTS
    assert [clip.frames.sum(dtype=int) for clip in patient.clips] == pytest.approx(GREY, rel=1e-5)
    assert [clip.frames[1, 40:80, 40:90].std() for clip in patient.clips] == pytest.approx(SPREAD, rel=1e-4)


def test_same_seed_same_bytes_whatever_else_is_asked_for(patients):
    again, alone = make_patient(3, VARIED), make_patient(3, replace(VARIED, views=("A4C",)))
    for first, second in zip(patients[3].clips, again.clips, strict=True):
        assert first.frames.tobytes() == second.frames.tobytes()
        assert first.labels.tobytes() == second.labels.tobytes()
    assert alone.clips[0].frames.tobytes() == patients[3].clip("A4C").frames.tobytes()


def slices(cut: Cut) -> tuple[np.ndarray, np.ndarray, float]:
    """Places in the middle of 4000 slices of the cavity, their diameters in mm, and how thick they are."""
    state = cut.state
    share = (np.arange(4000) + 0.5) / 4000
    z = -state.c + share * (state.c + state.h)
    diameters = 2 * state.short_axis(cut.view) * np.sqrt(1 - (z / state.c) ** 2) * cut.shape.width_at(share)
    return z, diameters, (state.c + state.h) / 4000


def test_discs_of_both_views_give_the_true_volume(patients):
    for patient in patients:
        for frame, volume in ((0, patient.edv_ml), (-1, patient.esv_ml)):
            (_, first, thick), (_, second, _) = (slices(clip.cuts[frame]) for clip in patient.clips)
            assert np.pi / 4 * (first * second).sum() * thick / 1000 == pytest.approx(volume, rel=0.002)
        assert 100 * (1 - patient.esv_ml / patient.edv_ml) == pytest.approx(patient.ef_percent)


def test_the_mask_has_the_area_of_the_slices(patients):
    areas = []
    for clip in (clip for patient in patients for clip in patient.clips):
        seen = clip.labels[0] == 1
        if seen[[0, -1]].any() or seen[:, [0, -1]].any():
            continue  # cut off by the frame
        _, diameters, thick = slices(clip.cuts[0])
        assert seen.sum() * clip.spacing_mm[0] ** 2 == pytest.approx(diameters.sum() * thick, rel=0.03)
        areas.append(seen.sum())
    assert len(areas) > 10


def test_labels_lie_as_in_a_heart(patients):
    for clip in (clip for patient in patients for clip in patient.clips):
        for labels in clip.labels:
            cavity = labels == 1
            assert components(cavity)[1] == 1 and (labels == 2).any()
            beside = {int(labels[1:][cavity[:-1]].max()), *np.unique(labels[:, 1:][cavity[:, :-1]]).tolist()}
            beside |= set(np.unique(labels[:, :-1][cavity[:, 1:]]).tolist())
            assert 2 in beside
        assert (clip.labels[0] == 1).sum() > (clip.labels[1] == 1).sum()


def test_places_go_to_the_picture_and_back():
    rng = np.random.default_rng(5)
    heart = varied_heart(rng, ef_percent=55.0)
    cut = Cut(heart.end_diastole, "A4C", Pose(3.0, 12.0, 0.2, 0.0, -1), Shape.random(rng, heart.width, "A4C"))
    u, z = rng.uniform(-25, 25, 200), rng.uniform(-cut.state.c, cut.state.h, 200)
    back = cut.straight(*cut.pose.to_local(*cut.to_image(u, z)))
    # The share of the axis is that of the slanted place, so that both ways agree to rounding.
    assert np.allclose(back, (u, z), atol=1e-9)


def test_swapped_left_and_right_is_the_mirror_image():
    heart = random_heart(np.random.default_rng(1), ef_percent=60.0)
    x, y = np.meshgrid(np.linspace(-60, 60, 101), np.linspace(0, 150, 90))
    pose = Pose(4.0, 10.0, 0.15, -3.0)
    labels = [Cut(heart.end_diastole, "A4C", p).labels(*p.to_local(x, y)) for p in (pose, replace(pose, side=-1))]
    assert np.array_equal(labels[0], labels[1][:, ::-1])
    assert not np.array_equal(labels[0], labels[1])


def test_width_leaves_the_volume():
    fine = np.linspace(0, 1, 4001)
    for seed in range(20):
        truncation = 0.2 + 0.02 * seed
        width = balanced_width(np.random.default_rng(seed), truncation)
        area = 1 - (fine * (1 + truncation) - 1) ** 2
        assert (area * Shape(width).width_at(fine) ** 2).sum() == pytest.approx(area.sum(), rel=1e-3)
        assert np.ptp(width) > 0.01


def test_variety(patients):
    clips = [clip for patient in patients for clip in patient.clips]
    sizes = {clip.frames.shape[1:] for clip in clips}
    assert len(sizes) > 8
    assert all(112 <= rows <= 144 and 112 <= columns <= 176 for rows, columns in sizes)
    greys = np.array([np.median(clip.frames[0][clip.labels[0] == 1]) for clip in clips])
    assert greys.max() > 2 * greys.min()
    hearts = [varied_heart(np.random.default_rng(seed), ef_percent=50.0) for seed in range(60)]
    assert {heart.side for heart in hearts} == {-1, 1}
    walls = [heart.end_diastole.wall for heart in hearts]
    assert min(walls) < 8 < 14 < max(walls)


def test_overlays_only_add():
    frames = np.full((2, 120, 150), 20, np.uint8)
    added = [draw_overlays(frames, np.random.default_rng(seed)) for seed in range(12)]
    assert all((marked >= frames).all() for marked in added)
    assert sum((marked > frames).any() for marked in added) > 6
    assert all((marked > frames).mean() < 0.2 for marked in added)


def test_tracings_follow_the_shape():
    clip = make_patient(
        2, PhantomSettings(size=(112, 112), whole_beat=True, views=("A4C",), frames=6, randomised=True)
    ).clips[0]
    tracing = volume_tracing(clip, clip.ed_frame)[1:]
    rows, columns = tracing[4:-4, [1, 3]].mean(1), tracing[4:-4, [0, 2]].mean(1)
    inside = (rows > 0) & (rows < 111) & (columns > 0) & (columns < 111)
    assert inside.sum() > 8
    assert (
        clip.labels[clip.ed_frame][np.rint(rows[inside]).astype(int), np.rint(columns[inside]).astype(int)] == 1
    ).all()


def test_command(tmp_path, monkeypatch):
    monkeypatch.setenv("echoplan_raw", str(tmp_path))
    command = ["-d", "VARIED", "--patients", "2", "--size", "128", "160", "--frames", "2", "--randomised", "-np", "0"]
    assert make_phantom([*command, "--structures", "all"]) == 0
    dataset = EchoDataset.read(tmp_path / "Dataset001_VARIED")
    clips = [dataset.load_clip(case) for case in dataset.cases]
    assert [len(clip.frames) for clip in clips] == [2] * 4
    assert len({clip.frame_shape for clip in clips}) > 1
