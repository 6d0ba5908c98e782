import numpy as np
import pytest
import torch

from echoplan.errors import EchoPlanError
from echoplan.imageio.clip import Clip
from echoplan.preprocessing import normalise, preprocess_clip, sector_statistics, to_uint8
from echoplan.preprocessing.clip import NormalisedFrames
from echoplan.sector import detect_sector


def test_uint8_is_untouched():
    frames = np.random.default_rng(0).integers(0, 255, (2, 64, 64), dtype=np.uint8)
    out, geometry = preprocess_clip(Clip(frames, (0.5, 0.5)), size=(64, 64))
    assert np.array_equal(out, frames)
    assert geometry.spacing_mm == (0.5, 0.5)


@pytest.mark.parametrize("dtype, top", [(np.uint16, 4095), (np.float32, 1.0)])
def test_other_types_are_scaled_once_for_the_whole_clip(dtype, top):
    ramp = np.linspace(0, top, 64 * 64).reshape(64, 64)
    frames = np.stack([ramp, ramp / 2]).astype(dtype)
    scaled = to_uint8(frames)
    assert scaled.min() == 0 and scaled.max() == 255
    # The second frame is half as bright, and stays so: no scaling frame by frame.
    assert scaled[1].max() == pytest.approx(127.5, abs=2)


def test_odd_values_do_not_spread():
    frames = np.random.default_rng(0).random((2, 50, 50)).astype(np.float32)
    frames[0, 0, 0], frames[0, 0, 1] = np.nan, np.inf
    scaled = to_uint8(frames)
    assert scaled[0, 0, 0] == 0 and scaled[0, 0, 1] == 0
    assert 120 < scaled.mean() < 135
    with pytest.raises(EchoPlanError, match="finite"):
        to_uint8(np.full((1, 4, 4), np.nan))
    with pytest.raises(EchoPlanError, match=r"\(T, H, W\)"):
        to_uint8(np.zeros((4, 4), np.uint16), source="x.png")
    assert (to_uint8(np.full((1, 4, 4), 7.5)) == 0).all()


def test_crop_finds_the_box_or_takes_the_one_given(sector_scene):
    frames, true = sector_scene(frames=3)
    clip = Clip(frames)
    _, whole = preprocess_clip(clip, size=(256, 256))
    _, found = preprocess_clip(clip, size=(256, 256), crop=True)
    _, given = preprocess_clip(clip, size=(256, 256), crop=True, crop_box=true)
    assert whole.crop_box == (0, 600, 0, 800)
    assert found.crop_box == detect_sector(frames)
    assert given.crop_box == true
    _, unused = preprocess_clip(clip, size=(256, 256), crop=False, crop_box=true)
    assert unused.crop_box == whole.crop_box


def test_statistics_are_those_of_the_sector():
    rng = np.random.default_rng(0)
    frames = np.zeros((5, 100, 100), np.uint8)
    frames[:, 20:60, 30:70] = rng.integers(50, 150, (5, 40, 40))
    inside = frames[:, 20:60, 30:70].astype(float)
    assert sector_statistics(frames) == pytest.approx((inside.mean(), inside.std()))
    normal = normalise(frames, *sector_statistics(frames))
    assert normal.dtype == np.float32
    assert normal[:, 20:60, 30:70].mean() == pytest.approx(0, abs=1e-5)
    assert normal[:, 20:60, 30:70].std() == pytest.approx(1, abs=1e-5)


def test_normalise_by_name():
    frames = np.array([[[0, 255]]], np.uint8)
    assert normalise(frames, 1.0, 2.0, "unit").tolist() == [[[0.0, 1.0]]]
    assert sector_statistics(np.zeros((1, 4, 4), np.uint8)) == (0.0, 1.0)
    with pytest.raises(EchoPlanError, match="zscore_sector"):
        normalise(frames, 0.0, 1.0, "minmax")


@pytest.mark.parametrize("normalisation", ["zscore_sector", "unit", "grey"])
def test_frames_normalised_as_they_are_asked_for_are_the_same_to_the_bit(normalisation):
    clips = [np.arange(256, dtype=np.uint8).reshape(4, 8, 8), np.full((2, 8, 8), 7, np.uint8)]
    statistics = [(123.456, 7.7), (0.1, 3.3)]
    frames = NormalisedFrames(clips, statistics, normalisation)
    expected = [normalise(clip, *of, normalisation) for clip, of in zip(clips, statistics, strict=True)]
    expected = np.concatenate(expected)
    assert len(frames) == 6 and frames.shape == (6, 8, 8)
    for indices in (slice(1, 5), [5, 0], 3, torch.tensor([[0, 4], [5, 1]])):
        np.testing.assert_array_equal(frames[indices].numpy(), expected[indices])
