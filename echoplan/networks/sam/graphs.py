"""SAM in two graphs, with the box found between them: no operator of ONNX tells connected regions apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.networks.interface import StreamedFrames
from echoplan.networks.sam.locator import found_boxes
from echoplan.networks.steps import Graph, Run


class Resized(nn.Module):
    """`F.interpolate` with antialiasing, which the exporter does not know, by one matrix a side.

    Args:
        old, new: (H, W).
        way: "bilinear" or "bicubic".
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, old: Sequence[int], new: Sequence[int], way: str) -> None:
        super().__init__()
        for name, side, goal in zip(("rows", "columns"), old, new, strict=True):
            lines = torch.eye(side)[None, None]
            matrix = F.interpolate(lines, size=(goal, side), mode=way, align_corners=False, antialias=True)[0, 0]
            self.register_buffer(name, matrix, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """``(..., H, W)`` -> the new size."""
        return self.rows @ images @ self.columns.T


def graphs_of(
    encoder: nn.Module, decoder: nn.Module, *, size: tuple[int, int], features: Sequence[int]
) -> dict[str, Graph]:
    """The two graphs for frames of `size`.

    Args:
        encoder: a frame ``(1, C, H, W)`` -> its features, and the locator's logits ``(1, 1, 128, 128)``.
        decoder: the features and the frame's box ``(1, 4)``, in its pixel centres -> logits ``(1, 1, H, W)``.
        size: H and W.
        features: their shape.
    """
    told = {"features": torch.zeros(*features), "box": torch.tensor([[0.0, 0.0, size[1] - 1.0, size[0] - 1.0]])}
    return {
        "encoder": Graph(encoder, {"frames": torch.zeros(1, 1, *size)}, ["features", "located"], {}),
        "decoder": Graph(decoder, told, ["logits"], {}),
    }


def walk(frames: StreamedFrames, run: Run, *, margin: float) -> Iterator[tuple[int, Tensor]]:
    """Frame after frame, each by itself; `margin` is what `found_boxes` takes."""
    for index in range(len(frames)):
        features, located = run("encoder", {"frames": frames[index : index + 1]})
        box = found_boxes(located[None], size=frames.shape[-2:], margin=margin)[0]
        (logits,) = run("decoder", {"features": features, "box": box})
        yield index, logits[0]


def program(*, margin: float) -> list[str]:
    """`walk` in NumPy, see `SteppingNetwork`."""
    return [
        "def box_of(inside):  # of the largest region that hangs together, a little wider; else the whole frame",
        "    outside = inside.size",
        "    number = np.where(inside, np.arange(outside).reshape(inside.shape), outside)",
        "    while True:  # every pixel takes the least number of its region",
        "        p = np.pad(number, 1, constant_values=outside)",
        "        beside = [p[:-2, 1:-1], p[2:, 1:-1], p[1:-1, :-2], p[1:-1, 2:], number]",
        "        least = np.where(inside, np.min(beside, axis=0), outside)",
        "        if (least == number).all():",
        "            break",
        "        number = least",
        "    last = np.array(frames.shape[:0:-1], np.float32) - 1  # x and y of the frame's last pixel",
        "    if not inside.any():",
        "        return np.concatenate([0 * last, last])[None]",
        "    regions, sizes = np.unique(number[inside], return_counts=True)",
        "    rows, columns = np.nonzero(number == regions[sizes.argmax()])",
        "    scale = (last + 1) / inside.shape[::-1]",
        "    ends = np.array([[columns.min(), rows.min()], [columns.max(), rows.max()]])",
        "    low, high = (ends + 0.5) * scale - 0.5  # in pixel centres of the frame",
        f"    wider = {margin!r} * (high - low)",
        "    box = np.clip(np.concatenate([low - wider, high + wider]), 0, np.tile(last, 2))",
        "    return box[None].astype(np.float32)",
        "",
        "",
        "masks = np.zeros_like(frames)",
        "for i in range(len(frames)):",
        '    features, located = run("encoder", frames=frames[i : i + 1])',
        '    masks[i : i + 1], _ = run("decoder", features=features, box=box_of(located[0, 0] >= 0))',
    ]
