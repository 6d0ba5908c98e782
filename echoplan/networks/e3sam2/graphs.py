"""SAM2 and E3SAM2 in three graphs: a frame by itself, the start frame, and a frame with the memory of those before."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.networks.e3sam2.banks import BANKS, MemoryBank
from echoplan.networks.e3sam2.encoder import Encoder, FrameFeatures
from echoplan.networks.e3sam2.prompts import confidence
from echoplan.networks.e3sam2.tracking import Decoded, Segmenter, enlarge, start_candidates
from echoplan.networks.interface import StreamedFrames
from echoplan.networks.steps import Graph, Run

_FINEST = 4  # stride of the encoder's first tokens
_FEATURES = ("top", "middle", "fine")
_STATE = ("there", "features", "confidence")
_POINTERS = ("object_there", "object_pointer", "object_frame")


def state_names(*, marked: bool) -> tuple[str, ...]:
    """What `MemoryBank.state` has, with object pointers where memories are marked by their places in the clip."""
    return (*_STATE, *_POINTERS) if marked else _STATE


class EncoderStep(nn.Module):
    """A frame ``(1, C, H, W)`` -> its `FrameFeatures`, and ``(1,)``, how sure the coarse head is of it."""

    places: Tensor

    def __init__(self, encoder: Encoder, segmenter: Segmenter) -> None:
        super().__init__()
        self.encoder, self.prompting, self.decoder = encoder, segmenter.prompting, segmenter.decoder
        grid = segmenter.size // _FINEST
        self.register_buffer("places", encoder.places(grid, grid).detach(), persistent=False)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See the class."""
        maps, _ = self.encoder.stages(frames, places=self.places)
        features = self.encoder.pyramid(maps, *self.decoder.projections)
        return features.top, features.middle, features.fine, confidence(self.prompting.locate(features.top))


class _Step(nn.Module):
    """A frame decoded and remembered.

    Args:
        segmenter: does both; one of `for_graphs`.
        shift: by which logits are lowered.
    """

    def __init__(self, segmenter: Segmenter, *, shift: float) -> None:
        super().__init__()
        self.segmenter, self.shift = segmenter, shift
        self.prompting, self.memory, self.decoder = segmenter.prompting, segmenter.memory, segmenter.decoder

    @property
    def names(self) -> tuple[str, ...]:
        """Of the memory's state."""
        return state_names(marked=self.memory.has_marks)

    def _answer(self, decoded: Decoded, bank: MemoryBank) -> tuple[Tensor, ...]:
        """Logits ``(1, 1, H, W)``, and the state."""
        state = bank.state()
        logits = enlarge(decoded.mask, self.segmenter.size) - self.shift
        return logits, *(state[name] for name in self.names)


class StartStep(_Step):
    """The start frame's features and, where memories are marked, its index ``(1,)`` -> logits, and the state."""

    def forward(self, top: Tensor, middle: Tensor, fine: Tensor, frame: Tensor | None = None) -> tuple[Tensor, ...]:
        """See the class."""
        seen, read = FrameFeatures(top, middle, fine), self.memory.without(top)
        starts = self.prompting.begin([self.prompting.locate(top)], [[0]], None)
        decoded = self.segmenter.begin(starts, seen, read)
        where = torch.zeros(1, dtype=torch.long) if frame is None else frame
        return self._answer(decoded, self.segmenter.new_bank(self.segmenter.remembered(where, top, read, decoded)))


class FrameStep(_Step):
    """A later frame's features, where memories are marked its index and the clip's length, and the state.

    They give what the start frame's do.
    """

    def forward(self, top: Tensor, middle: Tensor, fine: Tensor, *told: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        names = self.names
        place, state = told[: -len(names)], dict(zip(names, told[-len(names) :], strict=True))
        frame, length = place or (torch.zeros(1, dtype=torch.long),) * 2
        settings, seen = self.segmenter.settings, FrameFeatures(top, middle, fine)
        bank = BANKS[settings.memory].of_state(state, settings.memory_frames)
        read = self.memory.read(top, self.segmenter.positions, bank=bank, frames=frame, lengths=length)
        decoded = self.segmenter.follow(seen, read)
        bank.add(self.segmenter.remembered(frame, top, read, decoded))
        return self._answer(decoded, bank)


def for_graphs(segmenter: Segmenter) -> Segmenter:
    """The same without gradients, which a graph cannot hold, and complex numbers, which ONNX does not have."""
    prompting = copy.deepcopy(segmenter.prompting).requires_grad_(False)
    memory = copy.deepcopy(segmenter.memory).requires_grad_(False)
    decoder = copy.deepcopy(segmenter.decoder).requires_grad_(False)
    memory.attention = _MemoryAttention(memory.attention)
    return Segmenter(
        segmenter.settings, prompting=prompting, memory=memory, decoder=decoder, positions=segmenter.positions
    )


class _MemoryAttention(nn.Module):
    """SAM2's memory attention, as `Memory.read` calls it.

    Args:
        attention: the package's.
    """

    turns: Tensor
    layers: Any
    norm: Any

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.layers, self.norm = attention.layers, attention.norm
        turns = torch.view_as_real(attention.layers[0].self_attn.freqs_cis)  # alike in all
        self.register_buffer("turns", turns, persistent=False)  # (h * w, C / 2, 2)

    def forward(
        self, *, curr: Tensor, curr_pos: Tensor, memory: Tensor, memory_pos: Tensor, num_obj_ptr_tokens: int
    ) -> Tensor:
        """Frames' tokens ``(h * w, N, C)`` with what memories ``(M, N, 64)`` hold, the last of which lie nowhere."""
        tokens, memory, places = (each.transpose(0, 1) for each in (curr + 0.1 * curr_pos, memory, memory_pos))
        for layer in self.layers:
            normed = layer.norm1(tokens)
            tokens = tokens + self._attend(layer.self_attn, normed, normed, normed, nowhere=0)
            normed = layer.norm2(tokens)
            tokens = tokens + self._attend(
                layer.cross_attn_image, normed, memory + places, memory, nowhere=num_obj_ptr_tokens
            )
            tokens = tokens + layer.linear2(layer.activation(layer.linear1(layer.norm3(tokens))))
        tokens = self.norm(tokens)
        return tokens.transpose(0, 1)

    def _attend(self, attention: Any, query: Tensor, key: Tensor, value: Tensor, *, nowhere: int) -> Tensor:
        """Attention by one head, its queries and all but the last keys turned by their places."""
        q, k, v = attention.q_proj(query), attention.k_proj(key), attention.v_proj(value)
        placed = k.shape[1] - nowhere
        k = torch.cat([self._turned(k[:, :placed]), k[:, placed:]], dim=1)
        q, k, v = (each.unsqueeze(1) for each in (self._turned(q), k, v))
        return attention.out_proj(F.scaled_dot_product_attention(q, k, v).squeeze(1))

    def _turned(self, tokens: Tensor) -> Tensor:
        """Tokens ``(N, m * h * w, C)`` of m grids, each pair of channels multiplied by its place's complex number."""
        real, imaginary = tokens.unflatten(1, (-1, len(self.turns))).unflatten(3, (-1, 2)).unbind(4)
        cosine, sine = self.turns.unbind(2)
        turned = [real * cosine - imaginary * sine, real * sine + imaginary * cosine]
        return torch.stack(turned, dim=4).flatten(3).flatten(1, 2)


def graphs_of(encoder: EncoderStep, start: StartStep, frame: FrameStep) -> dict[str, Graph]:
    """The three graphs, "encoder", "start" and "frame"."""
    size, names = start.segmenter.size, start.names
    frames = torch.zeros(1, 1, size, size)
    features = dict(zip(_FEATURES, encoder(frames), strict=False))
    where, length = (
        {name: torch.ones(1, dtype=torch.long)} if start.memory.has_marks else {} for name in ("frame", "length")
    )
    first = {**features, **where}
    _, *begun = start(*first.values())
    # Of a memory that is full, so that what is compared with PyTorch has to let go of something.
    full = [torch.ones_like(value) if value.dtype == torch.bool else value for value in begun]
    state = dict(zip(names, full, strict=True))
    outputs = ["logits", *(f"next_{name}" for name in names)]
    return {
        "encoder": Graph(encoder, {"frames": frames}, [*_FEATURES, "sureness"], {}),
        "start": Graph(start, first, outputs, {}),
        "frame": Graph(frame, {**first, **length, **state}, outputs, {}),
    }


def walk(frames: StreamedFrames, run: Run, *, candidates: int, marked: bool) -> Iterator[tuple[int, Tensor]]:
    """From the start frame, chosen among so many candidates, to the clip's end, and from there to its beginning."""
    names, length = state_names(marked=marked), len(frames)
    encoded: dict[int, Sequence[Tensor]] = {}
    sureness: dict[int, float] = {}

    def encode(index: int) -> tuple[Tensor, ...]:
        return run("encoder", {"frames": frames[index : index + 1]})

    def features(index: int) -> dict[str, Tensor]:
        known = encoded.pop(index) if index in encoded else encode(index)[:-1]
        return dict(zip(_FEATURES, known, strict=True))

    for index in start_candidates(length, most=candidates):
        *encoded[index], sure = encode(index)
        sureness[index] = float(sure)
    start = max(sureness, key=sureness.__getitem__)
    logits, *begun = run("start", features(start) | ({"frame": torch.tensor([start])} if marked else {}))
    yield start, logits[0]
    for way in (range(start + 1, length), range(start - 1, -1, -1)):
        state = begun
        for index in way:
            place = {"frame": torch.tensor([index]), "length": torch.tensor([length])} if marked else {}
            logits, *state = run("frame", features(index) | place | dict(zip(names, state, strict=True)))
            yield index, logits[0]


def program(candidates: int, *, marked: bool) -> list[str]:
    """`walk` in NumPy, see `SteppingNetwork`."""
    frame, length = (
        f"{name}=np.array([{value}], np.int64), " if marked else ""
        for name, value in (("frame", "i"), ("length", "len(frames)"))
    )
    return [
        f"state = {list(state_names(marked=marked))}",
        f"count = min({candidates}, len(frames))",
        "candidates = [round(i * (len(frames) - 1) / max(1, count - 1)) for i in range(count)]",
        'encoded = {i: run("encoder", frames=frames[i : i + 1]) for i in candidates}',
        "",
        "",
        "def features(i):",
        '    known = encoded.pop(i) if i in encoded else run("encoder", frames=frames[i : i + 1])',
        f"    return dict(zip({list(_FEATURES)}, known))",
        "",
        "",
        "i = max(candidates, key=lambda i: encoded[i][-1][0])  # begin where the network is surest",
        "ways = range(i + 1, len(frames)), range(i - 1, -1, -1)  # then to the end, and back to the beginning",
        "masks = np.zeros_like(frames)",
        f'masks[i : i + 1], _, *begun = run("start", {frame}**features(i))',
        "for way in ways:",
        "    memory = begun",
        "    for i in way:",
        "        known = {**features(i), **dict(zip(state, memory))}",
        f'        masks[i : i + 1], _, *memory = run("frame", {frame}{length}**known)',
    ]
