"""Segmenting clips frame by frame: from the start frame to the end, then from there back to the beginning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from echoplan.networks.e3sam2.bank import MemoryBank, Remembered
from echoplan.networks.e3sam2.decoder import Decoded, Decoder
from echoplan.networks.e3sam2.encoder import FrameFeatures
from echoplan.networks.e3sam2.memory import Memory
from echoplan.networks.e3sam2.prompting import Prompting
from echoplan.networks.e3sam2.prompts import StartPrompt

_STRIDE = 16  # of the top features


def visiting_order(start: int, length: int) -> list[int]:
    """Frame indices in the order in which they are segmented."""
    return [*range(start, length), *range(start - 1, -1, -1)]


@dataclass
class Track:
    """One clip on its way.

    Attributes:
        prompt: what it is begun with.
        length: frames in the clip.
        bank: what is remembered; None before the start frame.
    """

    prompt: StartPrompt
    length: int
    bank: MemoryBank | None = None

    def group(self) -> tuple[int, ...]:
        """Tracks of one group have equally long sequences to attend to, and may go through the network together."""
        return self.prompt.group() if self.bank is None else (0, *self.bank.shape)

    def is_read(self, frame: int) -> bool:
        """Whether another frame comes after this one that could read the memory of it."""
        return self.length > 1 if frame == self.prompt.frame else 0 < frame < self.length - 1


@dataclass(frozen=True)
class Visit:
    """A frame of one clip, about to be segmented."""

    track: Track
    frame: int
    features: FrameFeatures


class Tracker:
    """Prompting, memory and decoder at work on any number of clips.

    Args:
        prompting, memory, decoder: the network's parts.
        bank: the kind of memory bank.
        positions: the position encoding ``(1, 256, h, w)`` of the top features.
        sure_boxes: whether a box leaves no doubt, so that SAM2's single mask is taken for it.
    """

    def __init__(
        self,
        *,
        prompting: Prompting,
        memory: Memory,
        decoder: Decoder,
        bank: type[MemoryBank],
        positions: Tensor,
        sure_boxes: bool = False,
    ) -> None:
        self.prompting, self.memory, self.decoder = prompting, memory, decoder
        self.bank, self.sure_boxes = bank, sure_boxes
        self.positions = positions
        self._decoder_positions = prompting.positions()

    def visit(self, visits: Sequence[Visit]) -> list[Decoded]:
        """Segment one frame of each clip, and remember it where it is worth it."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, visit in enumerate(visits):
            if visit.track.bank is not None and visit.frame == visit.track.prompt.frame - 1:
                visit.track.bank = visit.track.bank.turned()
            groups.setdefault(visit.track.group(), []).append(index)
        answers: dict[int, Decoded] = {}
        for members in groups.values():
            answers.update(zip(members, self._visit_alike([visits[i] for i in members]), strict=True))
        return [answers[index] for index in range(len(visits))]

    def _visit_alike(self, visits: Sequence[Visit]) -> list[Decoded]:
        features = FrameFeatures.stack([visit.features for visit in visits])
        banks = [visit.track.bank for visit in visits if visit.track.bank is not None]
        if not banks:
            return self._begin([visit.track.prompt for visit in visits], visits, features)
        top = self.memory.read(
            features.top,
            self.positions,
            banks=banks,
            frames=[visit.frame for visit in visits],
            length=visits[0].track.length,
        )
        prompt = self.prompting.embed(len(visits))
        decoded = self.decoder(top, features, prompt=prompt, positions=self._decoder_positions)
        self._remember(visits, features.top, decoded)
        return decoded.frames()

    def _begin(self, starts: Sequence[StartPrompt], visits: Sequence[Visit], features: FrameFeatures) -> list[Decoded]:
        """The start frames of clips with prompts of one group."""
        prompt, believed = self.prompting.embed(starts), starts[0].answer is not None
        decoded = self.decoder(
            # What SAM2 believes it reads with no mark of a frame without memories.
            features.top if believed else self.memory.without(features.top),
            features,
            prompt=prompt,
            positions=self._decoder_positions,
            single=believed or (self.sure_boxes and starts[0].has_box),
        )
        if believed:
            decoded = decoded.believing(torch.stack([start.answer for start in starts]))
        self._remember(visits, features.top, decoded)
        return decoded.frames()

    def _remember(self, visits: Sequence[Visit], top: Tensor, decoded: Decoded) -> None:
        confidences = _numbers(decoded.confidence)
        wanted = [
            index
            for index, visit in enumerate(visits)
            if visit.track.is_read(visit.frame)
            and (visit.track.bank is None or visit.track.bank.admits(confidences[index]))
        ]
        if not wanted:
            return
        masks = enlarge(decoded.mask[wanted], size=_STRIDE * self.positions.shape[-1])
        for index, features in zip(wanted, self.memory.write(top[wanted], masks), strict=True):
            track = visits[index].track
            new = Remembered(visits[index].frame, features, decoded.pointer[index], confidences[index])
            if track.bank is None:
                track.bank = self.bank(new)
            else:
                track.bank.add(new)


def enlarge(masks: Tensor, size: int) -> Tensor:
    """Logits ``(N, K, h, w)`` on the frames' grid, ``(N, K, size, size)``, in float32."""
    return F.interpolate(masks.float(), size=(size, size), mode="bilinear")


def _numbers(values: Tensor) -> list[float]:
    """The values; on the meta device, where there are none, ones: all that may be remembered is."""
    return [1.0] * len(values) if values.is_meta else values.detach().tolist()
