"""Reading and writing clips and masks: NIfTI, MetaImage, DICOM, AVI, MP4, PNG and JPEG.

clip = read_clip("patient.dcm")
clip.frames, clip.spacing_mm, clip.frame_time_ms
"""

from echoplan.imageio.clip import Clip, ClipInfo, Crop
from echoplan.imageio.formats import (
    FORMATS,
    Format,
    ending,
    find_format,
    probe_clip,
    read_clip,
    read_mask,
    write_clip,
    write_mask,
)

__all__ = [
    "FORMATS",
    "Clip",
    "ClipInfo",
    "Crop",
    "Format",
    "ending",
    "find_format",
    "probe_clip",
    "read_clip",
    "read_mask",
    "write_clip",
    "write_mask",
]
