import io

import numpy as np
import pytest
from PIL import Image

from echoplan.preprocessing import detect_sector


def assert_close(box, true, shape, slack=0.05):
    """The box holds the true one (but for a sliver) and is not much larger."""
    slack = slack * max(shape)
    for found, wanted, sign in zip(box, true, (1, -1, 1, -1), strict=True):
        assert -slack <= (found - wanted) * sign <= 0.01 * max(shape), (box, true)


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
    compressed = []
    for frame in clip:
        stream = io.BytesIO()
        Image.fromarray(frame).save(stream, "JPEG", quality=40)
        compressed.append(np.asarray(Image.open(stream)))
    assert_close(detect_sector(np.stack(compressed)), true, clip.shape[1:])
