"""Masks lie on their clips' own grid in space."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from echoplan.imageio import read_clip, read_mask, write_mask

FRAMES = np.random.default_rng(0).integers(1, 200, (4, 40, 48)).astype(np.uint8)


@pytest.mark.parametrize("ending", ["nii.gz", "mha", "nrrd"])
@pytest.mark.parametrize("form", ["turned", "flat", "over time"])
def test_masks_lie_on_their_clips_grid(tmp_path, ending, form):
    if form == "over time":
        image = sitk.GetImageFromArray(FRAMES[:, None], isVector=False)
        image.SetSpacing((0.25, 0.5, 1.0, 0.025))
        image.SetOrigin((10.0, -20.5, 5.0, 0.0))
    else:
        image = sitk.GetImageFromArray(FRAMES if form == "turned" else FRAMES[:1])
        image.SetSpacing((0.2, 0.3, 25.0))
        image.SetDirection((0, -1, 0, -1, 0, 0, 0, 0, 1))
        image.SetOrigin((10.0, -20.5, 5.0))
    if form == "over time" and ending == "nrrd":
        pytest.skip("SimpleITK writes no 4D NRRD that it reads as such")
    file = tmp_path / f"clip.{ending}"
    sitk.WriteImage(image, str(file))
    clip = read_clip(file)
    write_mask(tmp_path / "mask.nii.gz", clip.frames > 100, like=clip)
    image, mask = sitk.ReadImage(str(file)), sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    assert image.GetSize() == mask.GetSize()
    if form == "over time":
        image, mask = image[..., 1], mask[..., 1]
    kept = sitk.GetArrayFromImage(sitk.Mask(image, mask))
    frames = FRAMES[:1] if form == "flat" else FRAMES[1:2] if form == "over time" else FRAMES
    assert np.array_equal(kept.reshape(frames.shape), np.where(frames > 100, frames, 0))
    assert read_mask(tmp_path / "mask.nii.gz").shape == clip.frames.shape
