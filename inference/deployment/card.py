"""The card beside an exported model: what it is, what goes in and comes out, and a program that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from echoplan import __version__, layout
from echoplan.networks.steps import Graph, SteppingNetwork

from ...preprocessing.clip import BACKGROUND
from ...preprocessing.geometry import Geometry
from ..predictor import EchoPredictor

_NEEDS = "`pip install numpy onnxruntime`; EchoPlan and PyTorch are not needed."
_RESEARCH = "Research software, no medical device: its figures must not guide the care of a patient."


@dataclass(frozen=True)
class ExportedModel:
    """What was exported.

    Attributes:
        predictor: that the file stands for.
        grid: (h, w) of the networks' grid.
        frames: (H, W) of the frames that go in.
        geometry: of frames that do not come on the grid.
        statistics: whether the sector's mean and SD go in, too.
        checkpoint: "final" or "best".
        walking: the network, where it goes through a clip by several files,
        graphs: which are these.
    """

    predictor: EchoPredictor
    grid: tuple[int, int]
    frames: tuple[int, int]
    geometry: Geometry | None
    statistics: bool
    checkpoint: str
    walking: SteppingNetwork | None = None
    graphs: Mapping[str, Graph] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """Their names."""
        return [layout.step_file(name) for name in self.graphs] or [layout.ONNX_FILE]

    @property
    def window(self) -> int:
        """Frames that the network sees at once."""
        return self.predictor.members[0].model.window

    @property
    def stride(self) -> int:
        """Frames from one of a window's frames to the next."""
        return self.predictor.members[0].model.plan.window_stride


def model_card(made: ExportedModel) -> str:
    """Markdown: the model, its data and licence, inputs and outputs, and how to run it."""
    inside = [_inputs(made), _outputs(made)] if made.walking is None else [_inputs(made), _steps(made)]
    return "\n\n".join([_what(made), *inside, _program(made), _terms(made)]) + "\n"


def _what(made: ExportedModel) -> str:
    lines = []
    for member in made.predictor.members:
        folds = ", ".join(map(str, member.folds))
        lines.append(f"- {member.model.trainer}, plan {member.model.plan.plans_name}, folds {folds} "
                     f"(checkpoint {made.checkpoint})")  # fmt: skip
    averaged = sum(len(member.networks) for member in made.predictor.members)
    how = "" if averaged == 1 else " Their probabilities are averaged inside the file."
    structures = ", ".join(f"{value} {name}" for name, value in made.predictor.description.labels.items())
    files = " and ".join(f"`{name}`" for name in made.files)
    title = f"# {made.predictor.name}"
    about = (
        f"Segments 2D echocardiograms ({structures}), frame by frame of a clip. Exported by EchoPlan {__version__} "
        f"to {files}.{how}"
    )
    return f"{title}\n\n{about}\n\n" + "\n".join(lines)


def _inputs(made: ExportedModel) -> str:
    height, width = made.frames
    if made.geometry is None:
        where = f"on the model's grid: the clip resized to {height} x {width} pixels"
        plan = made.predictor.members[0].model.plan
        where += " after a crop to the sector" if plan.crop else ""
        where += ", its aspect kept and zeros around" if plan.protocol == "aspect" else ", its aspect not kept"
    else:
        where = f"as they are in a clip of {height} x {width} pixels; resizing is inside"
        spacing = made.geometry.spacing_mm
        where += "" if spacing is None else "; the sizes of its pixels are those that were named at the export"
    seen = (
        "T is 1"
        if made.walking is not None
        else "any number"
        if made.window == 1
        else f"T up to {made.window}, the frames of one window"
    )
    rows = [f"| `frames` | uint8 | (T, {height}, {width}) | grey levels 0 to 255, {where}; {seen} |"]
    if made.statistics:
        rows.append(
            "| `statistics` | float32 | (2,) | mean and SD of all the clip's grey levels in the sector, the pixels of "
            f"the model's grid that are above {BACKGROUND} in any frame. NaN: measured in `frames`, which then have to "
            "be the whole clip |"
        )
    return "\n".join(["## In", "", "| name | type | shape | |", "| --- | --- | --- | --- |", *rows])


def _outputs(made: ExportedModel) -> str:
    height, width = made.frames
    classes = made.predictor.description.classes
    maps = "of the structure" if classes == 1 else "one map a label, the background first"
    rule = "where the probability is at least 0.5" if classes == 1 else "the most probable one"
    return "\n".join(
        [
            "## Out",
            "",
            "| name | type | shape | |",
            "| --- | --- | --- | --- |",
            f"| `masks` | uint8 | (T, {height}, {width}) | labels, {rule} |",
            f"| `probabilities` | float32 | ({classes}, T, {height}, {width}) | {maps}, 0 to 1 |",
        ]
    )


def _steps(made: ExportedModel) -> str:
    """The files, with what goes from one to the next."""
    lines = ["## Files", ""]
    for name, graph in made.graphs.items():
        into = ", ".join(_input(key, values, free=key in graph.free) for key, values in graph.inputs.items())
        lines.append(f"- `{layout.step_file(name)}`: {into} -> {', '.join(f'`{key}`' for key in graph.outputs)}")
    lines += [
        "",
        "`masks` are uint8 labels, `probabilities` float32, 0 to 1; all else that has no type here is float32. What a "
        "file gives under a name another takes, `next_` is left out then. The program below hands the state on.",
    ]
    return "\n".join(lines)


def _input(name: str, example: Tensor, *, free: bool) -> str:
    """An input's name, its type where it is not float32, and its shape."""
    kind = "" if example.dtype == torch.float32 else f"{str(example.dtype).removeprefix('torch.')} "
    shape = str(tuple(example.shape))
    return f"`{name}` {kind}{shape.replace('2', 'N', 1) if free else shape}"


def _walk(made: ExportedModel) -> list[str]:
    """The lines that go through a clip by several files."""
    assert made.walking is not None
    told = {name: "told" for name in ["statistics"] if made.statistics}
    names = ", ".join(f'"{name}"' for name in made.graphs)
    lines = [
        "import numpy as np",
        "import onnxruntime",
        "",
        f'sessions = {{name: onnxruntime.InferenceSession(f"{{name}}.onnx") for name in ({names})}}',
        f'frames = np.load("clip.npy")  # uint8 (T, {made.frames[0]}, {made.frames[1]})',
        *(_statistics() if told else []),
        "",
        "",
        "def run(name, **inputs):",
        *(['    told_too = {"statistics": told} if name == "encoder" else {}'] if told else []),
        f"    return sessions[name].run(None, inputs{' | told_too' if told else ''})",
        "",
        "",
    ]
    return [*lines, *made.walking.program()]


def _statistics() -> list[str]:
    return [
        f"sector = frames[:, frames.max(axis=0) > {BACKGROUND}].astype(np.float32)",
        "told = np.array([sector.mean(), max(1, sector.std())], np.float32)",
    ]


def _program(made: ExportedModel) -> str:
    lines = [
        "import numpy as np",
        "import onnxruntime",
        "",
        f'session = onnxruntime.InferenceSession("{layout.ONNX_FILE}")',
        f'frames = np.load("clip.npy")  # uint8 (T, {made.frames[0]}, {made.frames[1]})',
    ]
    told = '{"frames": frames}'
    if made.walking is not None:
        lines = _walk(made)
    elif made.window == 1:
        if made.statistics:
            lines.append("told = np.full(2, np.nan, np.float32)  # these frames are the whole clip")
            told = '{"frames": frames, "statistics": told}'
        lines.append(f"masks, probabilities = session.run(None, {told})")
    else:
        lines += _windows(made)
    target = made.predictor.target
    lines.append(
        f"area = (masks == {target}).sum(axis=(1, 2))  # pixels of {made.predictor.description.target}, frame by frame"
    )
    return "\n".join(["## Run", "", _NEEDS, "", "```python", *lines, "```"])


def _windows(made: ExportedModel) -> list[str]:
    """The lines that lay windows over a clip of any length, as EchoPlan does, and average where they overlap."""
    window, classes = made.window, made.predictor.description.classes
    told = {"frames": "frames[seen]"}
    lines = []
    if made.statistics:
        lines += _statistics()
        told["statistics"] = "told"
    inputs = ", ".join(f'"{name}": {value}' for name, value in told.items())
    average = "sums[0] >= 0.5 * counts[:, None, None]" if classes == 1 else "sums.argmax(axis=0)"
    return [
        *lines,
        f"sums, counts = np.zeros(({classes}, *frames.shape), np.float32), np.zeros(len(frames), np.float32)",
        f"step = min({made.stride}, -(-len(frames) // {window}))  # from one frame of a window to the next",
        "for index in (np.arange(phase, len(frames), step) for phase in range(step)):",
        f"    last = max(0, len(index) - {window})",
        f"    for start in [*range(0, last, {max(1, round(window / 2))}), last]:",
        f"        seen = index[start : start + {window}]",
        "        weights = np.minimum(np.arange(len(seen)) + 1, len(seen) - np.arange(len(seen)))",
        f"        found = session.run(None, {{{inputs}}})[1]",
        "        sums[:, seen] += found * weights[:, None, None]",
        "        counts[seen] += weights",
        f"masks = ({average}).astype(np.uint8)",
    ]


def _terms(made: ExportedModel) -> str:
    data = made.predictor.description
    dataset = made.predictor.members[0].model.plan.dataset
    lines = [
        "## Data and licence",
        "",
        f"Trained on {dataset}; licence of the data: {data.licence or 'not named'}. "
        "Weights are made from patients' images: the terms of the data may bind the model, too.",
    ]
    if data.reference:
        lines += ["", f"Cite: {data.reference}"]
    return "\n".join([*lines, "", _RESEARCH])
