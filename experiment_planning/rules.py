"""The rules that do not depend on the GPU: each reads the fingerprint's summary and returns one decision."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from echoplan.errors import EchoPlanError
from echoplan.plans import Decision

from ..training.recipe import MethodRequirements, PublishedProtocol

Summary = Mapping[str, Any]

MULTIPLE = 32  # five halvings, what all encoders here divide an image by
SMALLEST_SIDE = 96
LARGEST_SIDE = 256
CLIP_FRAMES = 10
FRAME_SAMPLING = Decision("labelled_frames", "every labelled frame is a sample", kind="fixed")
PAPERS_CROP = Decision(False, "asked for: the papers do not crop to the sector", kind="fixed")
PAPERS_JUDGING = Decision(
    "sampled",
    "asked for: as in the papers the frames that the network is given are judged, on its own grid",
    kind="fixed",
)
_CROP_SAVES = 0.15
_CROP_MAY_LOSE = 0.001
_KNOWN = 0.9
_APICAL = ("A2C", "A3C", "A4C", "A5C", "2CH", "3CH", "4CH", "ALAX", "APICAL", "UNKNOWN")


def crop_rule(summary: Summary) -> Decision:
    """Crop to the sector if it saves enough and cuts no labels off."""
    saved = summary["sector_saved_share"]["median"]
    lost = (summary["target_outside_sector_share"] or {"max": 0.0})["max"]
    return Decision(
        value=saved >= _CROP_SAVES and lost <= _CROP_MAY_LOSE,
        rule=f"crop to the sector's box where that saves at least {_CROP_SAVES:.0%} of the area in the median clip and "
        f"cuts off at most {_CROP_MAY_LOSE:.1%} of the target in any clip",
        evidence={"median_saved_share": saved, "largest_target_share_outside": lost},
    )


def typical_clip_rule(summary: Summary) -> Decision:
    """What clips of one of several datasets look like, so that a clip that nobody assigns finds its like."""
    whole = summary["whole"]
    value = {
        "height_px": whole["height_px"]["median"],
        "width_px": whole["width_px"]["median"],
        "sector_share": round(1 - summary["sector_saved_share"]["median"], 4),
    }
    rule = (
        "the medians: a clip to predict whose dataset nobody names goes the way of the dataset with the smallest sum "
        "of |log ratio| over these three"
    )
    return Decision(value, rule, kind="measured")


def protocol_rule(protocol: str) -> Decision:
    """Keep the aspect, or stretch as the papers do."""
    if protocol == "stretch":
        return Decision(
            "stretch", "asked for: frames are stretched to the network's grid, as in the papers", kind="fixed"
        )
    if protocol != "aspect":
        raise EchoPlanError(f"unknown protocol {protocol!r}", remedy="choose aspect or paper")
    rule = "the same mm a pixel in both directions, padded with zeros: a stretched heart has another shape"
    return Decision("aspect", rule, kind="fixed")


def size_rule(
    extents: Summary, *, crop: bool, protocol: str, square: bool, override: tuple[int, int] | None
) -> Decision:
    """The network's grid (H, W) for a configuration, from how large clips are as they are cropped."""
    if override is not None:
        return override_size(override, square=square)
    side = long_side(extents, at_most=LARGEST_SIDE)
    aspect = extents["aspect"]["median"]
    rule = (
        f"long side: the median long side{' of the sector' if crop else ''}, rounded up to a multiple of {MULTIPLE}, "
        f"at least {SMALLEST_SIDE}, at most {LARGEST_SIDE}; "
    )
    if square or protocol == "stretch":
        height, width, rule = side, side, rule + "square"
    else:
        height, width = with_aspect(side, aspect, MULTIPLE)
        rule += f"short side: by the median physical aspect, rounded up to a multiple of {MULTIPLE}"
    return Decision(value=[height, width], rule=rule, evidence=_extent_evidence(extents))


def trainer_size_rule(
    needs: MethodRequirements,
    extents: Summary,
    configured: Decision,
    *,
    protocol: str,
    override: tuple[int, int] | None,
    paper: PublishedProtocol | None = None,
) -> Decision:
    """The grid of one trainer: the paper's size where it states one, no larger than the data; else the plan's.

    Where a `paper` is followed, its size on this dataset, however large the data are.
    """
    if override is not None:
        return override_size(override, square=needs.square, multiple=needs.size_multiple)
    if paper is not None:
        return Decision([paper.size] * 2, "the paper's on this dataset", kind="fixed")
    square = needs.square or protocol == "stretch"
    if needs.paper_size is None:
        sides = [round_up(side, needs.size_multiple) for side in configured.value]
        value = [max(sides)] * 2 if square else sides
        rule = f"the configuration's, rounded up to multiples of {needs.size_multiple}{', square' if square else ''}"
        return Decision(value, rule, configured.evidence, configured.kind)
    side = long_side(extents, at_most=needs.paper_size, multiple=needs.size_multiple)
    value = [side, side] if square else list(with_aspect(side, extents["aspect"]["median"], needs.size_multiple))
    return Decision(
        value=value,
        rule=f"the paper's {needs.paper_size}, or less where the median long side, rounded up to a multiple of "
        f"{needs.size_multiple}, is less{'; square' if square else '; short side by the median physical aspect'}",
        evidence={"paper_size": needs.paper_size, **_extent_evidence(extents)},
    )


def override_size(size: tuple[int, int], *, square: bool, multiple: int = MULTIPLE) -> Decision:
    """The size that the user asked for, fitted to what a network can take.

    Raises:
        EchoPlanError: a side is not positive.
    """
    if min(size) < 1:
        raise EchoPlanError(f"a size of {size[0]} x {size[1]} is not possible", remedy="give --size 256 or 192x256")
    sides = [round_up(side, multiple) for side in size]
    value = [max(sides)] * 2 if square else sides
    fitted = "" if value == list(size) else f", fitted to {'a square with ' if square else ''}multiples of {multiple}"
    return Decision(value, f"asked for with --size{fitted}", {"asked_for": list(size)}, kind="fixed")


def paper_rules(paper: PublishedProtocol, dataset: str) -> dict[str, Decision]:
    """The split of a paper on a public dataset, its settings there, and how it stretched frames."""
    words = {
        "number": "7 : 1 : 2 of the patients in the order of their numbers",
        "official": "the dataset's own train, val and test",
    }
    split = Decision(paper.split, f"the paper's on {dataset}: {words[paper.split]}", kind="fixed")
    settings = Decision(dict(paper.settings), f"the paper's on {dataset}; --set still changes them", kind="fixed")
    rule = f"the paper's on {dataset}: {'each pixel the nearest one' if paper.fit == 'nearest' else 'linear'}"
    return {"split": split, "settings": settings, "protocol": Decision(paper.fit, rule, kind="fixed")}


def spacing_on_grid(extents: Summary, size: tuple[int, int], *, protocol: str) -> list[float] | None:
    """What one pixel of the network's grid covers in the median clip, in mm (row, column); None: no clip knows it."""
    if extents["height_mm"] is None:
        return None
    lengths = (extents["height_mm"]["median"], extents["width_mm"]["median"])
    spacing = [length / side for length, side in zip(lengths, size, strict=True)]
    if protocol == "aspect":
        spacing = [max(spacing)] * 2
    return [round(value, 4) for value in spacing]


def sampling_rule(summary: Summary) -> Decision:
    """How the frames of a training clip are chosen; `planned_samples` obeys it."""
    share = summary["known_share"]["phases"]
    evidence = {"phases_known_share": share, "ed_es_distance_frames": summary["ed_es_distance_frames"]}
    if share >= _KNOWN:
        rule = f"both phases are known in at least {_KNOWN:.0%} of the clips: uniform from ED to ES, both kept"
        return Decision("uniform_ed_es", rule, evidence)
    rule = (
        f"both phases are known in less than {_KNOWN:.0%} of the clips: windows around each labelled frame, uniform "
        "from ED to ES where they are known"
    )
    return Decision("windows", rule, evidence)


def frames_rule(summary: Summary, papers: int, *, override: int | None = None, paper: int | None = None) -> Decision:
    """T, the frames of a training clip: the papers', or those from ED to ES in the median clip if they are fewer.

    Where a `paper` is followed, its T, and frames repeat in shorter clips.

    Raises:
        EchoPlanError: fewer than two were asked for: a clip needs two to show motion.
    """
    distance = summary["ed_es_distance_frames"]
    there = papers if distance is None else max(2, round(distance["median"]) + 1)
    evidence = {"papers": papers, "ed_es_distance_frames": distance}
    if papers == 1:
        return Decision(1, "one frame at a time", evidence, "fixed")
    if override is not None:
        if override < 2:
            raise EchoPlanError(f"a clip of {override} frame(s) shows no motion", remedy="give --frames 2 or more")
        return Decision(override, "asked for with --frames", {**evidence, "asked_for": override}, "fixed")
    if paper is not None:
        rule = f"the paper's {paper}, asked for; in shorter clips frames repeat"
        return Decision(paper, rule, {**evidence, "asked_for": paper}, "fixed")
    if there >= papers:
        return Decision(papers, f"the papers' {papers} frames a clip", evidence, "fixed")
    rule = (
        "the frames from ED to ES, both kept, in the median clip: fewer than the papers' ten, and repeats teach nothing"
    )
    return Decision(there, rule, evidence)


def stride_rule(summary: Summary, frames: int) -> Decision:
    """Frames from one of a clip's frames to the next at inference."""
    distance = summary["ed_es_distance_frames"]
    evidence = {"ed_es_distance_frames": distance, "frames": frames}
    if frames < 2:
        return Decision(1, "frames go through the network one at a time: every one is seen", evidence)
    if distance is None:
        return Decision(1, "no distance from ED to ES is known: neighbouring frames", evidence)
    stride = max(1, round(distance["median"] / (frames - 1)))
    rule = "a window of T frames spans the median distance from ED to ES, as the clips of the training do"
    return Decision(stride, rule, evidence)


def learning_rate_rule(needs: MethodRequirements, batch: int) -> Decision:
    """The learning rate: the paper's, whatever the batch."""
    evidence: dict[str, float] = {"paper_batch_size": needs.batch_size, "batch_size": batch}
    if batch >= needs.batch_size:
        return Decision(needs.learning_rate, "the paper's, which belongs to its batch", evidence, "fixed")
    share = batch / needs.batch_size
    evidence["by_linear_rule"] = float(f"{needs.learning_rate * share:.3g}")
    evidence["by_square_root_rule"] = float(f"{needs.learning_rate * math.sqrt(share):.3g}")
    rule = (
        f"the paper's, kept though the batch is {batch} instead of {needs.batch_size}: the rules that scale a rate "
        "with the batch (linear for SGD, square root for Adam) were found for batches larger than a recipe's, and none "
        "is tested on this one; to scale it yourself, train with --set learning_rate=X"
    )
    return Decision(needs.learning_rate, rule, evidence, "fixed")


def normalisation_rule(summary: Summary) -> Decision:
    """How intensities are normalised."""
    return Decision(
        "zscore_sector",
        "gain differs from clip to clip: each clip's intensities minus their mean over their standard deviation, "
        "both inside the sector and over all frames, so that brightness does not flicker",
        {"clip_mean": summary["intensity_mean"], "clip_std": summary["intensity_std"]},
    )


def mirror_rule(summary: Summary) -> Decision:
    """Which flips the augmentation may use."""
    apical = sum(count for view, count in summary["views"].items() if view.upper() in _APICAL)
    total = sum(summary["views"].values())
    evidence = {"views": summary["views"]}
    if 2 * apical >= total:
        rule = (
            "apical (or unnamed) views: left and right depend on the scanner's convention, so horizontal flips are "
            "allowed; the transducer is always at the top, so vertical ones are not"
        )
        return Decision(["horizontal"], rule, evidence)
    return Decision([], "mostly other than apical views: their orientation carries meaning, no flips", evidence)


def rotation_rule(summary: Summary) -> Decision:
    """The largest rotation of the augmentation, in degrees."""
    return Decision(
        20.0,
        "PKEcho-Net's +-20 degrees, inside the +-15 to 30 that U-Nets use on echocardiography; about the sector's apex",
        {"views": summary["views"]},
        kind="fixed",
    )


def long_side(extents: Summary, *, at_most: int, multiple: int = MULTIPLE) -> int:
    """The median long side in pixels, rounded up to a multiple and kept between `SMALLEST_SIDE` and `at_most`."""
    median = extents["long_side_px"]["median"]
    return min(at_most, max(round_up(SMALLEST_SIDE, multiple), round_up(median, multiple)))


def with_aspect(side: int, aspect: float, multiple: int) -> tuple[int, int]:
    """(H, W) with `side` as the longer one, for an aspect height / width; the shorter one rounded up to a multiple."""
    if aspect >= 1:
        return side, min(side, round_up(side / aspect, multiple))
    return min(side, round_up(side * aspect, multiple)), side


def round_up(number: float, multiple: int) -> int:
    """The next multiple; a hair above a multiple (rounding of measured lengths) is that multiple."""
    return max(multiple, math.ceil(number / multiple - 1e-3) * multiple)


def _extent_evidence(extents: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "median_height_px": extents["height_px"]["median"],
        "median_width_px": extents["width_px"]["median"],
        "median_long_side_px": extents["long_side_px"]["median"],
        "median_aspect_height_over_width": extents["aspect"]["median"],
        **_by_dataset("median_long_side_px", extents["long_side_px"]),
    }


def _by_dataset(name: str, number: Mapping[str, Any]) -> dict[str, Any]:
    """Of several datasets, where a median is a mean of medians: these."""
    return {f"{name}_by_dataset": number["by_dataset"]} if "by_dataset" in number else {}
