"""Which source dataset a clip goes with, so that it comes to the network as that dataset's training clips did."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from echoplan.errors import EchoPlanError
from echoplan.imageio.clip import Clip
from echoplan.plans import ResolvedPlan
from echoplan.sector import box_share, detect_sector

from ..preprocessing.clip import to_uint8

logger = logging.getLogger(__name__)


def plan_for_clip(plan: ResolvedPlan, clip: Clip, like: str | None = None) -> ResolvedPlan:
    """The plan as it holds for a clip that was in no training.

    The clip is treated as one of the dataset `like`; where none is named, or one that the model was not trained on, as
    one of the dataset whose typical clip it resembles most. A single dataset has no choice.

    Args:
        plan: of a trained model.
        clip: the clip.
        like: a source dataset, or None.
    """
    if not plan.multi_dataset:
        (like,) = plan.datasets
    if like is not None and like in plan.datasets:
        return plan.of(like)
    name = most_alike(plan, clip)
    logger.info("%s is treated as a clip of %s", clip.source, name)
    return plan.of(name)


def check_like(like: str | None, plans: Sequence[ResolvedPlan]) -> str | None:
    """`like`, if one of the models was trained on that dataset jointly with others.

    Raises:
        EchoPlanError: none was.
    """
    choices = sorted({name for plan in plans if plan.multi_dataset for name in plan.datasets})
    if like is not None and like not in choices:
        raise EchoPlanError(
            f"no model was trained on {like} jointly with other datasets",
            remedy=f"choose one of {', '.join(choices)}" if choices else "leave --like out: the model has one geometry",
        )
    return like


def most_alike(plan: ResolvedPlan, clip: Clip) -> str:
    """The source dataset with the smallest sum of |log ratio| to its typical clip: height, width, sector's share.

    Header and grey levels alone decide; nobody has to know where a clip is from.
    """
    height, width = clip.frame_shape
    share = box_share(detect_sector(to_uint8(clip.frames, source=clip.source)), clip.frame_shape)
    measured = {"height_px": height, "width_px": width, "sector_share": share}

    def distance(name: str) -> float:
        typical = plan.of(name).value("typical_clip")
        return sum(abs(math.log(measured[key] / typical[key])) for key in measured)

    return min(plan.datasets, key=distance)
