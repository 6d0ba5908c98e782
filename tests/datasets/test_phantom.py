"""The phantom's truth: volumes, areas, labels, and whether the images behave like ultrasound."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from echoplan.datasets.phantom import PhantomSettings, make_patient
from echoplan.datasets.phantom.heart import (
    Cut,
    Pose,
    contraction_curve,
    random_heart,
    truncated_ellipsoid_volume_ml,
)
from echoplan.datasets.phantom.polar_grid import PolarGrid
from echoplan.datasets.phantom.render import Renderer, Scanner
from echoplan.datasets.phantom.scatter import complex_noise
from echoplan.errors import EchoPlanError

SMALL = PhantomSettings(size=(112, 128), frames=6)


@pytest.fixture(scope="module")
def patients():
    return [make_patient(seed, SMALL) for seed in range(4)]


def voxel_volume_ml(a, b, c, h, step=0.4):
    x, y, z = (np.arange(-limit, limit, step) + step / 2 for limit in (a + 1, b + 1, c + 1))
    z = z[z <= h]
    inside = (x[:, None, None] / a) ** 2 + (y[:, None] / b) ** 2 + (z / c) ** 2 <= 1
    return inside.sum() * step**3 / 1000


@pytest.mark.parametrize("axes", [(23.0, 20.0, 60.0, 24.0), (30.0, 34.0, 70.0, 20.0), (14.0, 16.0, 45.0, 25.0)])
def test_volume_agrees_with_counting_voxels(axes):
    assert truncated_ellipsoid_volume_ml(*axes) == pytest.approx(voxel_volume_ml(*axes), rel=0.005)


def ellipse_area_mm2(a, c, h):
    """Of an ellipse with semi-axes a and c from z = -c to z = h."""
    return a * c * (np.pi / 2 + np.arcsin(h / c) + h / c * np.sqrt(1 - (h / c) ** 2))


def test_volume_of_the_whole_ellipsoid():
    assert truncated_ellipsoid_volume_ml(10, 20, 30, 30) == pytest.approx(4 / 3 * np.pi * 6000 / 1000)


@pytest.mark.parametrize("ef", [20.0, 55.0, 75.0])
def test_heart_ejects_what_was_asked_and_keeps_its_muscle(ef):
    for seed in range(5):
        heart = random_heart(np.random.default_rng(seed), ef_percent=ef)
        states = [heart.state(contraction) for contraction in (0.0, 0.5, 1.0)]
        volumes = [state.volume_ml for state in states]
        assert 50 < volumes[0] < 260
        assert 100 * (1 - volumes[2] / volumes[0]) == pytest.approx(ef)
        assert volumes[1] == pytest.approx((volumes[0] + volumes[2]) / 2)
        assert [s.wall_volume_ml for s in states] == pytest.approx([states[0].wall_volume_ml] * 3)
        assert states[0].wall < states[1].wall < states[2].wall  # the wall thickens
        assert states[0].c + states[0].h > states[2].c + states[2].h  # the axis shortens
        assert states[0].atrium_length < states[2].atrium_length  # the atrium fills


def test_patient_reports_the_true_volumes(patients):
    for patient in patients:
        start = patient.heart.end_diastole
        assert patient.edv_ml == pytest.approx(voxel_volume_ml(start.a, start.b, start.c, start.h, 0.5), rel=0.005)
        assert 100 * (patient.edv_ml - patient.esv_ml) / patient.edv_ml == pytest.approx(patient.ef_percent)


def test_cavity_in_each_view_has_the_area_of_its_cut(patients):
    areas = []
    for patient in patients:
        for clip in patient.clips:
            pixel = clip.spacing_mm[0] * clip.spacing_mm[1]
            for frame in (clip.ed_frame, clip.es_frame):
                counted, heart = (clip.labels[frame] == 1).sum() * pixel, clip.cuts[frame].state
                area = ellipse_area_mm2(heart.short_axis(clip.view), heart.c, heart.h)
                assert counted == pytest.approx(area, rel=0.015)
                areas.append(counted)
    assert len(set(areas)) == len(areas)  # the two views differ


def test_discs_of_the_two_views_give_the_true_volume(patients):
    """Discs across the axis, measured on the rows of the straightened masks of both views."""
    for patient in patients:
        state = patient.clips[0].cuts[0].state
        z = -state.c + (np.arange(400) + 0.5) * (state.c + state.h) / 400
        u = np.arange(-60, 60, 0.05)
        widths = []
        for view in ("A2C", "A4C"):
            clip = patient.clip(view)
            cut = clip.cuts[clip.ed_frame]
            x, y = cut.to_image(*np.meshgrid(u, z))
            widths.append((cut.labels(*clip.cuts[0].pose.to_local(x, y)) == 1).sum(1) * 0.05)
        discs = np.pi / 4 * widths[0] * widths[1] * (state.c + state.h) / 400
        assert discs.sum() / 1000 == pytest.approx(patient.edv_ml, rel=0.005)


def test_cavity_shrinks_from_end_diastole_to_end_systole(patients):
    for patient in patients:
        for clip in patient.clips:
            areas = (clip.labels == 1).sum((1, 2))
            assert (clip.ed_frame, clip.es_frame) == (0, len(areas) - 1)
            assert np.all(np.diff(areas) < 0)
            assert (clip.labels == 3).sum((1, 2))[-1] > 0


def test_whole_beat_returns_to_end_diastole():
    clip = make_patient(3, PhantomSettings(size=(112, 112), whole_beat=True, views=("A4C",))).clip("A4C")
    areas = (clip.labels == 1).sum((1, 2)).astype(int)
    assert areas.argmax() == clip.ed_frame and areas.argmin() == clip.es_frame
    assert np.all(np.diff(areas[clip.ed_frame : clip.es_frame + 1]) <= 0)
    assert areas[-1] > areas[clip.es_frame] + 0.6 * (areas.max() - areas.min())
    assert 600 < len(areas) * clip.frame_time_ms < 1200


def test_contraction_curve_has_both_fillings():
    phase = np.linspace(0, 1, 401)
    contraction, valve = contraction_curve(phase, 0.4)
    assert contraction[0] == 0 and contraction[160] == pytest.approx(1) and contraction[-1] == pytest.approx(0)
    assert np.all(valve[:161] == 0) and valve[210] > 0.8
    speed = -np.diff(contraction)
    assert speed[190:230].max() > 3 * speed[275:320].max()  # early filling, then diastasis
    assert speed[330:].max() > 3 * speed[275:320].max()  # the atrial kick


def test_same_seed_same_bytes(patients):
    again, other = make_patient(0, SMALL), make_patient(1, SMALL)
    for first, second, third in zip(patients[0].clips, again.clips, other.clips, strict=True):
        assert first.frames.tobytes() == second.frames.tobytes()
        assert first.labels.tobytes() == second.labels.tobytes()
        assert first.frames.tobytes() != third.frames.tobytes()


def test_a_view_does_not_depend_on_the_others_asked_for(patients):
    alone = make_patient(0, PhantomSettings(size=(112, 128), frames=6, views=("A4C",)))
    assert alone.clips[0].frames.tobytes() == patients[0].clip("A4C").frames.tobytes()


def test_black_outside_the_sector_and_grey_inside(patients):
    for patient in patients:
        for clip in patient.clips:
            row, column = clip.sector_apex
            r0, r1, c0, c1 = clip.sector_box
            rows, columns = np.indices(clip.frames.shape[1:])
            angle = np.abs(np.arctan2(columns - column, rows - row))
            assert clip.frames[:, angle > np.deg2rad(44)].max() == 0
            assert clip.frames[:, :r0].size == 0 or clip.frames[:, :r0].max() == 0
            beside = (clip.frames[:, r1:], clip.frames[:, :, :c0], clip.frames[:, :, c1:])
            assert not any(part.any() for part in beside)
            assert clip.frames[:, (r0 + r1) // 2, (c0 + c1) // 2].min() > 0


def test_muscle_is_brighter_than_blood_but_overlaps_it():
    """As in CAMUS: medians of about 107 and 64 grey levels, and histograms that overlap."""
    contrasts, overlaps = [], []
    for seed in range(6):
        for clip in make_patient(seed, PhantomSettings(size=(112, 128), frames=2)).clips:
            seen = clip.frames[0] > 0
            blood, muscle = (clip.frames[0][seen & (clip.labels[0] == k)].astype(float) for k in (1, 2))
            contrasts.append(np.median(muscle) - np.median(blood))
            overlaps.append((muscle < np.percentile(blood, 75)).mean())
    assert 15 < np.median(contrasts) < 70
    assert 0.02 < np.median(overlaps) < 0.5


def correlation_width(image: np.ndarray, row: int, columns: slice) -> int:
    """Columns after which the autocorrelation along a band of rows falls below one half."""
    band = image[:, row - 6 : row + 6, columns].astype(float)
    band -= band.mean(-1, keepdims=True)
    power = [(band[..., : band.shape[-1] - lag] * band[..., lag:]).mean() for lag in range(20)]
    return int(np.argmax(np.array(power) < 0.5 * power[0]))


@pytest.fixture(scope="module")
def renderer():
    rng = np.random.default_rng(2)
    grid = PolarGrid.fitting((256, 256), 150.0, np.deg2rad(38), None)
    heart = random_heart(rng, ef_percent=60.0)
    pose = Pose(0.0, 15.0, 0.05, -2.0)
    cuts = [Cut(heart.state(contraction), "A4C", pose) for contraction in (0.0, 0.5)]
    return Renderer(rng, grid, cuts[0], Scanner.random(rng, 0.8)), cuts


def test_speckle_widens_with_depth(renderer):
    renderer, _ = renderer
    rng = np.random.default_rng(0)
    echo = np.stack([renderer.spread(complex_noise(rng, renderer.shape)) for _ in range(6)])
    assert (np.abs(echo) ** 2).mean() == pytest.approx(1.0, rel=0.05)
    image = renderer.grid.scan_convert(np.log(np.abs(echo) ** 2 + 1e-6))
    near = correlation_width(image, 70, slice(105, 151))
    far = correlation_width(image, 190, slice(60, 196))
    assert far > 1.8 * near


def test_speckle_moves_with_the_wall(renderer):
    renderer, cuts = renderer
    position, layer = np.meshgrid(np.linspace(-0.8, 0.8, 120), np.linspace(0.15, 0.85, 8))
    echoes = [np.log(np.abs(renderer.spread(renderer.wall.splat(cut, renderer.grid))) + 0.02) for cut in cuts]

    def seen(echo: np.ndarray, cut: Cut) -> np.ndarray:
        index = renderer.grid.to_polar_index(*cut.to_image(*cut.wall_point(position, layer)))
        return map_coordinates(echo, index, order=1).ravel()

    following = np.corrcoef(seen(echoes[0], cuts[0]), seen(echoes[1], cuts[1]))[0, 1]
    staying = np.corrcoef(seen(echoes[0], cuts[0]), seen(echoes[1], cuts[0]))[0, 1]
    assert following > 0.5 and following > staying + 0.2


def test_settings_that_make_no_sense_are_refused():
    for wrong in ({"size": (20, 160)}, {"frames": 1}, {"views": ("PLAX",)}, {"whole_beat": True, "frames": 4}):
        with pytest.raises(EchoPlanError):
            PhantomSettings(**wrong)
    with pytest.raises(EchoPlanError, match="does not fit"):
        make_patient(0, PhantomSettings(size=(64, 64), spacing_mm=0.3))
