"""Writing MetaImage and NRRD, by SimpleITK: files as its users know them, with what EchoPlan notes in them."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from echoplan.errors import EchoPlanError
from echoplan.imageio.clip import Clip

FRAME_TIME_KEY = "FrameTimeMs"
NO_SPACING_KEY = "SpacingUnknown"  # the spacing written is a stopgap
SPACING_KEY = "SpacingMm"  # row and column, where they are known better than the grid that the file lies on


def write(path: Path, clip: Clip, read_again: Callable[[Path], object]) -> None:
    """Write the clip as one compressed file on its own grid; where it knows none, the third spacing is the frame time
    in ms where that is known.

    Args:
        path: its ending names the format.
        clip: what to write.
        read_again: raises an EchoPlanError where the file is not whole; on a full disk SimpleITK may say nothing.

    Raises:
        OSError: the disk is full.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:  # a name of bytes that are no text, on which SimpleITK ends the process
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / f"clip{path.suffix}"
            write(plain, clip, read_again)
            shutil.copyfile(plain, path)
        return
    space = clip.space and clip.space.with_frames(clip.frames.shape)
    row, column = clip.spacing_mm or (1.0, 1.0)
    if space is None:
        image = sitk.GetImageFromArray(np.ascontiguousarray(clip.frames))
        image.SetSpacing((float(column), float(row), float(clip.frame_time_ms or 1.0)))
    else:
        image = sitk.GetImageFromArray(np.ascontiguousarray(clip.frames.reshape(space.size[::-1])), isVector=False)
        image.SetSpacing(space.spacing)
        image.SetOrigin(space.origin)
        image.SetDirection(space.direction)
        if clip.spacing_mm is not None and (column, row) != space.spacing[:2]:
            image.SetMetaData(SPACING_KEY, f"{float(row)!r} {float(column)!r}")
    if clip.frame_time_ms:
        image.SetMetaData(FRAME_TIME_KEY, repr(float(clip.frame_time_ms)))
    if clip.spacing_mm is None:
        image.SetMetaData(NO_SPACING_KEY, "True")
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
        read_again(path)
    except (RuntimeError, EchoPlanError) as error:
        if isinstance(error, RuntimeError) and os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
