"""Masks as predictions keep them lie on their clips' own grid in space."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from echoplan.imageio import read_clip, read_mask
from echoplan.masks import find_mask, save_mask


def placed(random: np.random.Generator, number: int, *, over_time: bool) -> sitk.Image:
    """A clip, every sixth of one frame, anywhere: upright, along other axes, or slanted, up to 2 m from 0."""
    frames = random.integers(1, 200, (1 if number % 6 == 0 else 3, 8, 9)).astype(np.uint8)
    image = sitk.GetImageFromArray(frames[:, None] if over_time else frames, isVector=False)
    turns = (
        np.eye(3),
        np.eye(3)[random.permutation(3)] * random.choice([-1, 1], 3),
        np.linalg.qr(random.normal(size=(3, 3)))[0],
    )
    direction, axes = np.eye(image.GetDimension()), image.GetDimension() - 3
    direction[:3, :3] = turns[number % 3]
    image.SetDirection(direction.ravel().tolist())
    image.SetOrigin([*random.normal(size=3) * 10 ** random.uniform(-2, 3.3), *[0.0] * axes])
    steps = [1.0, 1 / 30] if over_time else [random.choice([1.0, 25.0, 125 / 3, random.uniform(1, 200)])]
    image.SetSpacing([*random.uniform(0.02, 1, 2), *steps])
    return image


@pytest.mark.parametrize("over_time", [False, True])
@pytest.mark.parametrize("ending", ["nii.gz", "mha", "nrrd"])
def test_masks_lie_on_their_clips_grid(tmp_path, ending, over_time):
    if over_time and ending == "nrrd":
        pytest.skip("SimpleITK writes no 4D NRRD that it reads as such")
    random, file, endings = np.random.default_rng(0), tmp_path / f"clip.{ending}", set()
    for number in range(100):
        sitk.WriteImage(placed(random, number, over_time=over_time), str(file))
        clip = read_clip(file)
        save_mask(tmp_path, "mask", clip.frames > 100, like=clip)
        mask_file = find_mask(tmp_path, "mask")
        assert np.array_equal(read_mask(mask_file), clip.frames > 100)
        image, mask = sitk.ReadImage(str(file)), sitk.ReadImage(str(mask_file))
        assert image.GetSize() == mask.GetSize()
        shown = clip.frames
        if image.GetDimension() == 4:  # which the filter does not know
            image, mask, shown = image[..., 0], mask[..., 0], shown[:1]
        kept = sitk.GetArrayFromImage(sitk.Mask(image, mask))
        assert np.array_equal(kept.reshape(shown.shape), np.where(shown > 100, shown, 0))
        endings.add(mask_file.name)
    assert endings == ({"mask.nii.gz"} if ending == "nii.gz" else {"mask.nii.gz", "mask.mha"})
