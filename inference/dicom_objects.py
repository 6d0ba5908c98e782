"""DICOM segmentations and structured reports, built with highdicom; imported only where DICOM output was asked for.

An ultrasound clip has no frame of reference, so that what ties a segmentation to it is the reference of each frame to
its source frame (PS3.3 C.7.6.16.2.6), and frames are told apart by segment and temporal position. highdicom writes
segmentations of such images for single frames only; the multi-frame module is therefore filled in here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import NAMESPACE_OID, uuid5

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import pack_bits
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.tag import Tag
from pydicom.uid import (
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    UltrasoundImageStorage,
)

from echoplan import __version__

from ..evaluation import VOLUME_RULES, PatientRow
from ..evaluation.ejection import CHECK
from .dicom_header import carry_over

MAKER = "EchoPlan"
_SERIES_DESCRIPTION = "EchoPlan, for research only"
_SEGMENTATION_SERIES, _REPORT_SERIES = 9001, 9002
_STRUCTURES = {
    "LV": codes.SCT.LeftVentricle,
    "MYO": codes.SCT.LeftVentricleMyocardium,
    "LA": codes.SCT.LeftAtrium,
}
_OWN_SCHEME = "99ECHOPLAN"  # for structures that only the dataset names
_VIEWS = {"A2C": codes.SCT.ApicalTwoChamber, "A4C": codes.SCT.ApicalFourChamber}  # CID 12226
_METHODS = {1: codes.DCM.MethodOfDisksSinglePlane, 2: codes.DCM.MethodOfDisksBiplane}  # CID 12228, by views
_MILLILITRE, _PERCENT = Code("mL", "UCUM", "milliliter"), Code("%", "UCUM", "percent")
_QUALITY = Code("QUALITY", "99ECHOPLAN", "Quality of the measurement")
_LOWER = Code("371885007", "SCT", "-, range of lower measurement uncertainty")
_UPPER = Code("371886008", "SCT", "+, range of upper measurement uncertainty")
_COVERAGE = Code("COVERAGE", "99ECHOPLAN", "Coverage of the uncertainty interval")
_DERIVATION = Code("113076", "DCM", "Segmentation")  # CID 7203
# Their frames may not be referred to one by one, however many a file holds. The second is retired.
_SINGLE_FRAME = (UltrasoundImageStorage, "1.2.840.10008.5.1.4.1.1.6", SecondaryCaptureImageStorage)
_SEGMENT_NUMBER, _TEMPORAL_POSITION = Tag("ReferencedSegmentNumber"), Tag("TemporalPositionIndex")
_LONGEST_NAME = 64  # characters of VR LO


@dataclass(frozen=True)
class MeasuredClip:
    """A clip that volumes were measured on.

    Attributes:
        source: its header, as `read_header` gives it.
        ed_frame, es_frame: the frames measured, from 0.
        view: "A2C", "A4C" or anything else.
    """

    source: Dataset
    ed_frame: int
    es_frame: int
    view: str = ""


def make_segmentation(
    source: Dataset,
    mask: np.ndarray,
    *,
    structures: Mapping[str, int],
    target: str,
    model: str,
) -> Dataset:
    """A binary multi-frame segmentation with every structure on every frame of the clip.

    Args:
        source: the clip's header, as `read_header` gives it.
        mask: (T, H, W) labels on the grid of the source's own frames.
        structures: name -> value in the mask; each becomes a segment.
        target: the structure that is the left ventricle's cavity.
        model: the name of what made the mask.
    """
    made = hd.SOPClass(
        study_instance_uid=source.StudyInstanceUID,
        series_instance_uid=hd.UID(),
        series_number=_SEGMENTATION_SERIES,
        sop_instance_uid=hd.UID(),
        sop_class_uid=SegmentationStorage,
        instance_number=1,
        modality="SEG",
        manufacturer=MAKER,
        manufacturer_model_name=model[:_LONGEST_NAME],
        software_versions=__version__,
        device_serial_number=__version__,  # there has to be one
        series_description=_SERIES_DESCRIPTION,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    made.SpecificCharacterSet = source.SpecificCharacterSet
    carry_over(source, made)
    made.SegmentationType, made.SegmentsOverlap = "BINARY", "NO"
    made.ContentLabel, made.ContentDescription = "SEGMENTATION", "Structures of the heart, segmented automatically"
    made.ContentCreatorName = None
    made.ImageType = ["DERIVED", "PRIMARY"]
    made.PatientOrientation = ""
    made.SegmentSequence = [
        _segment(number, name, value, source, target=target, model=model)
        for number, (name, value) in enumerate(structures.items(), start=1)
    ]
    _add_references(made, source)
    _add_frames(made, source, len(structures), len(mask))
    _add_pixels(made, source, np.stack([mask == value for value in structures.values()]))
    return made


class _Report(hd.sr.ComprehensiveSR):
    def copy_patient_and_study_information(self, dataset: Dataset) -> None:
        carry_over(dataset, self)  # highdicom asks the SOP class which elements these are, and knows no retired ones


def make_report(clips: Sequence[MeasuredClip], row: PatientRow, *, model: str) -> hd.sr.ComprehensiveSR:
    """A structured report (TID 1500) of the left ventricle's volumes and ejection fraction.

    Args:
        clips: one for single-plane, two (A2C, A4C) for biplane volumes, all of one patient and study.
        row: what the report says, with an EF.
        model: the name of what made the masks.
    """
    sources = [clip.source for clip in clips]
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=_tracking_uid(sources[0]), identifier="Left ventricle"),
        finding_sites=[hd.sr.FindingSite(codes.SCT.LeftVentricle)],
        algorithm_id=hd.sr.AlgorithmIdentification(
            name=MAKER,
            version=__version__,
            parameters=[f"model: {model}", f"volumes: {row.volume_rule}, {VOLUME_RULES[row.volume_rule]}"],
        ),
        measurements=_measurements(clips, row),
        qualitative_evaluations=_quality(row),
    )
    for comment in filter(None, (row.note, row.quality_reasons and f"{_words(row)}: {row.quality_reasons}")):
        group[0].ContentSequence.append(
            hd.sr.TextContentItem(codes.DCM.Comment, comment, hd.sr.RelationshipTypeValues.CONTAINS)
        )
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=_uid(f"{MAKER} {__version__}"),
        name=MAKER,
        manufacturer_name=MAKER,
        model_name=model,
        serial_number=__version__,
    )
    observer = hd.sr.ObserverContext(codes.DCM.Device, device)
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.SCT.Echocardiography,
        imaging_measurements=[group],
    )
    made = _Report(
        evidence=sources,
        content=content,
        series_instance_uid=hd.UID(),
        series_number=_REPORT_SERIES,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=model[:_LONGEST_NAME],
        software_versions=__version__,
        series_description=_SERIES_DESCRIPTION,
        is_complete=True,
    )
    made.SpecificCharacterSet = sources[0].SpecificCharacterSet
    return made


def _words(row: PatientRow) -> str:
    """What the reasons for a row's quality are reasons for."""
    return "to check" if row.quality == CHECK else f"quality {row.quality}"


def _quality(row: PatientRow) -> list[hd.sr.QualitativeEvaluation]:
    """The row's quality as a coded evaluation; none where it was not asked for."""
    if not row.quality:
        return []
    value = Code(row.quality.upper().replace(" ", "_"), _OWN_SCHEME, row.quality)
    return [hd.sr.QualitativeEvaluation(_QUALITY, value)]


def _uid(name: str) -> str:
    """The same UID for the same name, always."""
    return f"2.25.{uuid5(NAMESPACE_OID, name).int}"


def _tracking_uid(source: Dataset) -> str:
    """Of the left ventricle in this study: segmentations and reports of one study name the same heart."""
    return _uid(f"{source.StudyInstanceUID} left ventricle")


def _segment(
    number: int, name: str, value: int, source: Dataset, *, target: str, model: str
) -> hd.seg.SegmentDescription:
    is_target = name == target
    code = codes.SCT.LeftVentricle if is_target else _STRUCTURES.get(name)
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:_LONGEST_NAME],
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=code or Code(f"LABEL{value}", _OWN_SCHEME, name[:_LONGEST_NAME]),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=MAKER,
            family=codes.DCM.ArtificialIntelligence,
            version=__version__,
            parameters={"model": model},
        ),
        tracking_uid=_tracking_uid(source) if is_target else None,
        tracking_id="Left ventricle" if is_target else None,
    )


def _reference(source: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    return item


def _has_frame_numbers(source: Dataset) -> bool:
    return source.NumberOfFrames > 1 and source.SOPClassUID not in _SINGLE_FRAME


def _add_references(made: Dataset, source: Dataset) -> None:
    series = Dataset()
    series.SeriesInstanceUID = source.SeriesInstanceUID
    series.ReferencedInstanceSequence = [_reference(source)]
    made.ReferencedSeriesSequence = [series]


def _add_frames(made: Dataset, source: Dataset, segments: int, frames: int) -> None:
    """The dimensions, and what each frame shows: segment by segment, and in each the whole clip."""
    organization = hd.UID()
    made.DimensionOrganizationSequence = [Dataset()]
    made.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    made.DimensionIndexSequence = [
        _dimension(organization, _SEGMENT_NUMBER, Tag("SegmentIdentificationSequence"), "Segment"),
        _dimension(organization, _TEMPORAL_POSITION, Tag("FrameContentSequence"), "Frame"),
    ]
    made.SharedFunctionalGroupsSequence = [Dataset()]
    made.PerFrameFunctionalGroupsSequence = [
        _frame_groups(source, segment, frame) for segment in range(1, segments + 1) for frame in range(1, frames + 1)
    ]
    made.NumberOfFrames = segments * frames


def _dimension(organization: str, index: int, group: int, label: str) -> Dataset:
    item = Dataset()
    item.DimensionOrganizationUID = organization
    item.DimensionIndexPointer, item.FunctionalGroupPointer = index, group
    item.DimensionDescriptionLabel = label
    return item


def _frame_groups(source: Dataset, segment: int, frame: int) -> Dataset:
    content, identification, derivation, image = Dataset(), Dataset(), Dataset(), _reference(source)
    content.DimensionIndexValues = [segment, frame]
    content.TemporalPositionIndex = frame
    identification.ReferencedSegmentNumber = segment
    if _has_frame_numbers(source):
        image.ReferencedFrameNumber = frame
    image.PurposeOfReferenceCodeSequence = [
        hd.sr.CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)
    ]
    image.SpatialLocationsPreserved = "YES"
    derivation.DerivationCodeSequence = [hd.sr.CodedConcept.from_code(_DERIVATION)]
    derivation.SourceImageSequence = [image]
    groups = Dataset()
    groups.FrameContentSequence = [content]
    groups.SegmentIdentificationSequence = [identification]
    groups.DerivationImageSequence = [derivation]
    return groups


def _add_pixels(made: Dataset, source: Dataset, segments: np.ndarray) -> None:
    """Pixels of (segments, T, H, W) bool, one bit each."""
    made.Rows, made.Columns = segments.shape[2:]
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
    made.BitsAllocated, made.BitsStored, made.HighBit = 1, 1, 0
    made.LossyImageCompression = source.get("LossyImageCompression") or "00"
    if made.LossyImageCompression == "01":
        for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if source.get(keyword) is not None:
                setattr(made, keyword, source.get(keyword))
    made.PixelData = pack_bits(segments.astype(np.uint8).ravel())


def _measurements(clips: Sequence[MeasuredClip], row: PatientRow) -> list[hd.sr.Measurement]:
    """EDV, ESV and EF (CID 12202), each with its method, and the frames it was measured on."""
    ed = [[clip.ed_frame] for clip in clips]
    es = [[clip.es_frame] for clip in clips]
    both = [sorted((clip.ed_frame, clip.es_frame)) for clip in clips]
    wanted = (
        (codes.LN.LeftVentricularEndDiastolicVolume, "edv", _MILLILITRE, ed),
        (codes.LN.LeftVentricularEndSystolicVolume, "esv", _MILLILITRE, es),
        (codes.LN.LeftVentricularEjectionFractionByUS, "ef", _PERCENT, both),
    )
    made = []
    for name, quantity, unit, frames in wanted:
        word = "percent" if unit is _PERCENT else "ml"
        value, low, high = (getattr(row, f"{quantity}{end}_{word}") for end in ("", "_low", "_high"))
        if value is None:
            continue
        measurement = hd.sr.Measurement(
            name=name,
            value=round(float(value), 2),
            unit=unit,
            method=_METHODS[len(clips)],
            derivation=codes.SCT.Mean if (row.beats or 1) > 1 else None,
            referenced_images=[
                hd.sr.SourceImageForMeasurement(
                    clip.source.SOPClassUID,
                    clip.source.SOPInstanceUID,
                    [frame + 1 for frame in numbers] if _has_frame_numbers(clip.source) else None,
                )
                for clip, numbers in zip(clips, frames, strict=True)
            ],
        )
        if len(clips) == 1 and clips[0].view in _VIEWS:
            view = hd.sr.CodeContentItem(
                codes.DCM.ImageView, _VIEWS[clips[0].view], hd.sr.RelationshipTypeValues.HAS_ACQ_CONTEXT
            )
            measurement[0].ContentSequence.append(view)
        if None not in (low, high):
            measurement[0].ContentSequence.extend(_uncertainty(float(value), float(low), float(high), unit, row))
        made.append(measurement)
    return made


def _uncertainty(value: float, low: float, high: float, unit: Code, row: PatientRow) -> list[hd.sr.NumContentItem]:
    """The interval, as the ranges below and above the value (TID 310), and how often it holds the reference."""
    numbers = [(_LOWER, value - low, unit), (_UPPER, high - value, unit)]
    if row.interval_coverage_percent is not None:
        numbers.append((_COVERAGE, row.interval_coverage_percent, _PERCENT))
    relation = hd.sr.RelationshipTypeValues.HAS_PROPERTIES
    return [
        hd.sr.NumContentItem(name, round(number, 2), of, relationship_type=relation) for name, number, of in numbers
    ]
