"""Reading and writing clips and masks: NIfTI, MetaImage, NRRD, DICOM, videos and pictures.

`read_clip("patient.dcm")` has `.frames`, `.spacing_mm`, `.frame_time_ms`. Files are not trusted: what is checked is in
docs/formats.md, and every failure is an `EchoPlanError` that names the file.
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
