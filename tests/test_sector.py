"""The sector among what scanners draw around it."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage.morphology import (
    convex_hull_image,
    isotropic_closing,
    isotropic_dilation,
    isotropic_erosion,
    isotropic_opening,
)

from echoplan.imageio import read_clip
from echoplan.sector import (
    box_share,
    closed_and_opened,
    detect_sector,
    dilated,
    eroded,
    opened,
    sector_mask,
    spread,
)


def assert_close(box, true, shape, slack=0.05):
    """The box holds the true one (but for a sliver) and is not much larger."""
    slack = slack * max(shape)
    for found, wanted, sign in zip(box, true, (1, -1, 1, -1), strict=True):
        assert -slack <= (found - wanted) * sign <= 0.01 * max(shape), (box, true)


def assert_fits(inside, fan, *, reach=0.03):
    """All of the fan is inside, and nothing farther from it than a margin."""
    assert inside[fan].mean() > 0.995
    away = ndimage.distance_transform_edt(~convex_hull_image(fan))
    assert away[inside].max() <= reach * max(fan.shape)


def compressed(clip, quality):
    """The clip through JPEG."""
    frames = []
    for frame in clip:
        stream = io.BytesIO()
        Image.fromarray(frame).save(stream, "JPEG", quality=quality)
        frames.append(np.asarray(Image.open(stream)))
    return np.stack(frames)


def drawn_on(clip, draw):
    """The clip with what `draw(pen)` draws on every frame."""
    picture = Image.new("L", clip.shape[:0:-1])
    draw(ImageDraw.Draw(picture))
    return np.maximum(clip, np.asarray(picture))


@pytest.mark.parametrize("frames", [1, 2, 12])
@pytest.mark.parametrize("background", [0, 25])
def test_finds_the_fan_among_text_trace_and_bar(sector_scene, frames, background):
    clip, true = sector_scene(frames=frames, background=background)
    assert_close(detect_sector(clip), true, clip.shape[1:])


@pytest.mark.parametrize("shape", [(112, 112), (480, 640), (1000, 1400)])
def test_finds_the_fan_at_any_size(sector_scene, shape):
    clip, true = sector_scene(frames=3, shape=shape, furniture=False)
    assert_close(detect_sector(clip), true, shape)


def test_a_moving_sector_wins_over_a_larger_still_picture(sector_scene):
    clip, _ = sector_scene(frames=6, furniture=False)
    half = clip[:, ::2, ::2]  # the fan, small, on the right
    scene = np.zeros((6, 600, 1200), np.uint8)
    scene[:, 100:400, 780:1180] = half
    scene[:, 20:580, 20:700] = 120
    r0, r1, c0, c1 = detect_sector(scene)
    assert c0 > 700 and r0 >= 100 and r1 <= 420 and c1 <= 1200


def test_a_frame_full_of_signal_is_kept_whole():
    clip = np.random.default_rng(0).integers(60, 200, (4, 200, 300), dtype=np.uint8)
    assert detect_sector(clip) == (0, 200, 0, 300)


@pytest.mark.parametrize("value", [0, 90])
def test_an_even_frame_has_no_sector(value):
    assert detect_sector(np.full((2, 100, 150), value, np.uint8)) == (0, 100, 0, 150)


def test_text_alone_is_no_sector(sector_scene):
    clip, _ = sector_scene(frames=1, furniture=True)
    clip[:, 95:] = 0
    clip[:, :, 150:] = 0
    assert detect_sector(clip) == (0, 600, 0, 800)


@pytest.mark.parametrize("sigma", [2, 5])
def test_noise_in_the_black_does_not_spread_the_box(sector_scene, sigma):
    clip, true = sector_scene(frames=16)
    noise = np.random.default_rng(1).normal(0, sigma, clip.shape)
    assert_close(detect_sector(np.clip(clip + noise, 0, 255).astype(np.uint8)), true, clip.shape[1:])


def test_compression_does_not_either(sector_scene):
    clip, true = sector_scene(frames=6)
    assert_close(detect_sector(compressed(clip, 40)), true, clip.shape[1:])


FANS = {
    "moving": {}, "still": {"moving": False}, "one frame": {"frames": 1}, "dark": {"gain": 0.3},
    "dark and still": {"gain": 0.3, "moving": False}, "convex": {"apex": (-0.25, 0.5), "near": 0.35, "depth": 1.1},
    "wide": {"half_angle": 45, "apex": (0.02, 0.5), "depth": 0.85}, "narrow": {"half_angle": 25},
    "off the middle": {"apex": (0.08, 0.42)}, "small": {"shape": (240, 320)},
}  # fmt: skip


@pytest.mark.parametrize("options", FANS.values(), ids=FANS)
def test_the_mask_holds_the_fan_and_no_words(sector_scene, options):
    options = {"frames": 3} | options
    clip, true = sector_scene(**options)
    plain, _ = sector_scene(**options, furniture=False)
    inside = sector_mask(clip)
    assert_fits(inside, plain.max(axis=0) > 0)
    words = (clip > plain).any(axis=0)
    words[90:] = False
    assert words.sum() > 1000 and not inside[words].any()
    assert_close(detect_sector(clip), true, clip.shape[1:])


@pytest.mark.parametrize("furniture", [False, True])
@pytest.mark.parametrize(
    "options",
    [{"apex": (0.02, 0.5), "depth": 1.05, "half_angle": 40}, {"apex": (-0.05, 0.5), "depth": 1.2, "half_angle": 50}],
    ids=["bottom", "all edges"],
)
def test_a_fan_cut_off_by_the_edges_is_kept(sector_scene, options, furniture):
    fan = sector_scene(frames=2, **options, furniture=False)[0].max(axis=0) > 0
    assert_fits(sector_mask(sector_scene(frames=2, **options, furniture=furniture)[0]), fan)


@pytest.mark.parametrize("quality", [None, 30])
@pytest.mark.parametrize("frames", [1, 3])
def test_words_that_touch_the_fan_stay_outside(sector_scene, frames, quality):
    plain, _ = sector_scene(frames=frames, furniture=False)

    def words(pen):
        for place in ((380, 25), (500, 150), (10, 350), (640, 400), (300, 500)):
            pen.text(place, "DOE JANE 1960", fill=230, font_size=18)

    clip = drawn_on(plain, words)
    assert_fits(sector_mask(clip if quality is None else compressed(clip, quality)), plain.max(axis=0) > 0)


@pytest.mark.parametrize("level", [0.72, 0.85])
@pytest.mark.parametrize("moving", [False, True])
def test_an_ecg_trace_across_the_fan_does_not_widen_it(sector_scene, level, moving):
    plain, _ = sector_scene(frames=2, moving=moving, furniture=False)
    x = np.arange(800)
    beats = [(int(at), int(level * 600 - 50 * (at % 160 < 6) + 4 * np.sin(at / 9))) for at in x]
    clip = drawn_on(plain, lambda pen: pen.line(beats, fill=240, width=2))
    assert_fits(sector_mask(clip), plain.max(axis=0) > 0)


@pytest.mark.parametrize(
    "bar",
    [(0, 0, 800, 40), (0, 560, 800, 600), (690, 0, 800, 600), (0, 0, 90, 600)],
    ids=["title", "keys", "right", "left"],
)
def test_a_bar_along_a_side_is_no_part_of_the_fan(sector_scene, bar):
    plain, _ = sector_scene(frames=3, furniture=False, apex=(0.05, 0.5), depth=0.87, half_angle=36)
    fan = plain.max(axis=0) > 0

    def title(pen):
        pen.rectangle(bar, fill=90)
        pen.text((bar[0] + 4, bar[1] + 8), "DOE JANE", fill=230, font_size=18)

    assert_fits(sector_mask(drawn_on(plain, title)), fan)


def test_a_picture_full_of_signal_is_no_bar():
    wide = np.zeros((3, 300, 400), np.uint8)
    wide[:, :36] = 120  # all that there is: nothing narrower follows
    wide[:, 36:300, 4:396] = np.random.default_rng(0).integers(60, 200, (3, 264, 392), dtype=np.uint8)
    assert sector_mask(wide)[:, 4:396].all()


def test_everything_is_inside_where_no_sector_stands_out(sector_scene):
    assert sector_mask(np.full((2, 100, 150), 90, np.uint8)).all()
    assert sector_mask(np.zeros((1, 3, 2), np.uint8)).all()
    assert sector_mask(np.random.default_rng(0).integers(60, 200, (4, 200, 300), dtype=np.uint8)).all()
    clip, _ = sector_scene(frames=1)
    clip[:, 95:], clip[:, :, 150:] = 0, 0  # words alone
    assert sector_mask(clip).all()


def test_a_real_clip_with_words_in_its_corners():
    data = pytest.importorskip("pydicom.data")
    file = data.get_testdata_file("examples_ybr_color.dcm", download=False)
    if file is None:
        pytest.skip("pydicom-data is not installed")
    frames = read_clip(file).frames
    inside, brightest = sector_mask(frames), frames.max(axis=0)
    sector = np.zeros(inside.shape, bool)
    sector[20:205, 30:265] = brightest[20:205, 30:265] > 40
    assert inside[sector].mean() > 0.99 and inside.mean() < 0.4
    for words in (np.s_[:30, :40], np.s_[:140, 295:], np.s_[225:, :], np.s_[195:210, 280:]):
        assert (brightest[words] > 30).any() and not inside[words].any()
    assert box_share(detect_sector(frames), frames.shape[1:]) < 0.6


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 255, (61, 44)).astype(np.uint8)


@pytest.fixture
def mask() -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(4).normal(size=(70, 93)), 2.5) > 0.05


@pytest.mark.parametrize("side", [1, 3, 4, 5, 8])
def test_a_grey_opening_is_scipys(image: np.ndarray, side: int) -> None:
    assert np.array_equal(opened(image, side), ndimage.grey_opening(image, (side, side), mode="nearest"))


@pytest.mark.parametrize("reach", [1, 3, 9])
def test_a_square_grows_as_scipys(image: np.ndarray, reach: int) -> None:
    few = image > 250
    assert np.array_equal(spread(few, reach), ndimage.maximum_filter(few, 2 * reach + 1))


@pytest.mark.parametrize("radius", [1, 2, 5, 6, 13])
def test_a_disc_grows_and_shrinks_as_skimages(mask: np.ndarray, radius: int) -> None:
    for whole in (mask, mask.T, np.zeros_like(mask), np.ones_like(mask)):
        assert np.array_equal(dilated(whole, radius), isotropic_dilation(whole, radius) & whole.any())
        assert np.array_equal(eroded(whole, radius), isotropic_erosion(whole, radius) | whole.all())


@pytest.mark.parametrize(("closing", "opening"), [(1, 1), (5, 3), (2, 4)])
def test_closing_and_opening_are_skimages(mask: np.ndarray, closing: int, opening: int) -> None:
    expected = mask
    for operation, radius in ((isotropic_closing, closing), (isotropic_opening, opening)):
        border = radius + 1
        expected = operation(np.pad(expected, border, mode="edge"), radius)[border:-border, border:-border]
    cleaned = closed_and_opened(mask, closing, opening)
    assert np.array_equal(cleaned, expected)
    assert 0 < cleaned.sum() < cleaned.size
