import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import structural_similarity
from skimage.transform import resize

from echoplan.errors import EchoPlanError
from echoplan.preprocessing import Geometry, plan_geometry


def dice(a, b):
    return 2 * np.logical_and(a, b).sum() / (a.sum() + b.sum())


def test_aspect_pads_the_short_side_in_the_middle():
    geometry = plan_geometry((600, 800), None, None, (256, 256), "aspect")
    assert geometry.resized_shape == (192, 256)
    assert geometry.padding == (32, 32, 0, 0)
    assert geometry.spacing_mm is None


def test_aspect_corrects_anisotropic_spacing():
    # 400 rows of 0.2 mm and 200 columns of 0.4 mm are a square of 80 mm.
    geometry = plan_geometry((400, 200), (0.2, 0.4), None, (128, 128), "aspect")
    assert geometry.resized_shape == (128, 128)
    assert geometry.spacing_mm == pytest.approx((0.625, 0.625))


def test_stretch_fills_the_grid_and_states_both_spacings():
    geometry = plan_geometry((100, 200), (0.5, 0.5), (0, 100, 50, 150), (64, 128), "stretch")
    assert geometry.resized_shape == (64, 128)
    assert geometry.padding == (0, 0, 0, 0)
    assert geometry.spacing_mm == pytest.approx((100 * 0.5 / 64, 100 * 0.5 / 128))


def test_nearest_takes_whole_pixels_of_frames_and_labels():
    geometry = plan_geometry((6, 5), (1.0, 1.0), (0, 6, 0, 4), (4, 8), "nearest")
    frames = np.arange(30, dtype=np.uint8).reshape(1, 6, 5)
    expected = frames[:, [0, 2, 3, 5]][:, :, [0, 0, 1, 1, 2, 2, 3, 3]]
    np.testing.assert_array_equal(geometry.to_network(frames), expected)
    np.testing.assert_array_equal(geometry.labels_to_network(frames), expected)
    assert geometry.spacing_mm == pytest.approx((1.5, 0.5))


@pytest.mark.parametrize("protocol", ["aspect", "nearest"])
def test_survives_json(protocol):
    geometry = plan_geometry((401, 301), (0.31, 0.29), (3, 390, 10, 280), (256, 192), protocol)
    assert Geometry.from_dict(geometry.to_dict()) == geometry
    assert geometry.size == (256, 192)


def test_errors_a_user_can_act_on():
    with pytest.raises(EchoPlanError, match="box"):
        plan_geometry((100, 100), None, (0, 101, 0, 50), (64, 64))
    with pytest.raises(EchoPlanError, match="aspect"):
        plan_geometry((100, 100), None, None, (64, 64), "paper")


def test_frames_agree_with_skimage():
    rng = np.random.default_rng(0)
    frame = ndimage.gaussian_filter(rng.random((150, 200)), 4)
    frame = ((frame - frame.min()) / np.ptp(frame) * 255).astype(np.uint8)
    ours = plan_geometry((150, 200), None, None, (75, 100), "stretch").to_network(frame[None])[0]
    theirs = resize(frame, (75, 100), order=1, anti_aliasing=True, preserve_range=True)
    assert ours.dtype == np.uint8
    assert np.abs(ours - theirs)[5:-5, 5:-5].max() < 3
    assert structural_similarity(ours.astype(float), theirs, data_range=255) > 0.99


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_constant_frames_stay_constant_and_padding_is_zero(dtype):
    geometry = plan_geometry((90, 60), None, (10, 70, 0, 60), (96, 128), "aspect")
    network = geometry.to_network(np.full((3, 90, 60), 200, dtype=dtype))
    assert network.dtype == dtype and network.shape == (3, 96, 128)
    assert (network[:, :, 16:112] == 200).all()
    assert (network[:, :, :16] == 0).all() and (network[:, :, 112:] == 0).all()


@pytest.mark.parametrize("shape, spacing", [((480, 640), (0.3, 0.3)), ((778, 549), (0.154, 0.308)), ((112, 112), None)])
@pytest.mark.parametrize("protocol", ["aspect", "stretch"])
def test_masks_go_there_and_back(ventricle_mask, shape, spacing, protocol):
    native = ventricle_mask(shape)
    geometry = plan_geometry(shape, spacing, None, (256, 256), protocol)
    network = geometry.labels_to_network(native[None])
    back = geometry.to_native(network.astype(np.float32)) > 0.5
    assert dice(native == 1, back[0]) >= 0.98


def test_smooth_maps_go_there_and_back_within_a_pixel():
    rows, columns = np.mgrid[:480, :640] + 0.5
    blob = np.exp(-(((rows - 210) / 70) ** 2) - ((columns - 333) / 50) ** 2).astype(np.float32)
    geometry = plan_geometry((480, 640), (0.3, 0.3), (30, 470, 101, 600), (256, 256), "aspect")
    back = geometry.to_native(geometry.to_network(blob[None]))[0]
    assert back.shape == blob.shape
    weights = back / back.sum()
    centre = (weights * rows).sum(), (weights * columns).sum()
    assert centre == pytest.approx((210, 333), abs=0.15)
    edge, true_edge = np.flatnonzero(back[210] > 0.5), np.flatnonzero(blob[210] > 0.5)
    assert abs(edge[0] - true_edge[0]) <= 1 and abs(edge[-1] - true_edge[-1]) <= 1


def test_probabilities_outside_the_box_are_zero_and_leading_axes_stay():
    geometry = plan_geometry((100, 120), None, (20, 80, 30, 90), (64, 64))
    native = geometry.to_native(np.ones((4, 2, 64, 64), np.float32))
    assert native.shape == (4, 2, 100, 120)
    assert np.allclose(native[:, :, 20:80, 30:90], 1)
    assert np.count_nonzero(native) == 4 * 2 * 60 * 60
    with pytest.raises(ValueError, match="64"):
        geometry.to_native(np.ones((2, 32, 64), np.float32))


def test_unlabelled_frames_stay_wholly_ignored():
    mask = np.zeros((3, 90, 60), np.uint8)
    mask[0] = 255
    mask[1, 20:70, 20:40] = 1
    mask[2] = 255
    network = plan_geometry((90, 60), None, None, (64, 64)).labels_to_network(mask)
    assert (network[[0, 2]] == 255).all()
    assert set(np.unique(network[1])) == {0, 1}


def test_ignored_pixels_in_a_labelled_frame_are_kept():
    mask = np.zeros((1, 80, 80), np.uint8)
    mask[0, :40] = 255
    mask[0, 60:, 60:] = 1
    network = plan_geometry((80, 80), None, None, (40, 40)).labels_to_network(mask)[0]
    assert (network[:20] == 255).all()
    assert (network[30:, 30:] == 1).all()
    assert (network[20:29] == 0).all()


def test_labels_keep_their_area_better_than_nearest(ventricle_mask):
    labels = ventricle_mask((600, 800))
    ring = ndimage.binary_dilation(labels, iterations=7) & (labels == 0)
    labels[ring] = 2
    geometry = plan_geometry((600, 800), None, None, (96, 128), "aspect")
    network = geometry.labels_to_network(labels[None])[0]
    scale = (96 / 600) ** 2
    for value in (1, 2):
        assert (network == value).sum() == pytest.approx((labels == value).sum() * scale, rel=0.06)


def test_every_value_comes_from_the_mask():
    rng = np.random.default_rng(1)
    mask = rng.choice(np.array([0, 2, 3, 255], np.uint8), size=(20, 50, 70))
    network = plan_geometry((50, 70), None, None, (64, 96)).labels_to_network(mask)
    assert set(np.unique(network)) <= {0, 2, 3, 255}
