"""A trained model as an ONNX file that takes a clip's bytes and gives masks, with a card that says how to run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from echoplan import __version__, layout
from echoplan.errors import EchoPlanError
from echoplan.files import write_text
from echoplan.networks.steps import Graph, SteppingNetwork

from ...preprocessing.geometry import Geometry, plan_geometry
from ...training.model_folder import normalisation_for
from ..model_selection import ModelChoice
from ..predictor import EchoPredictor
from .card import ExportedModel, model_card
from .exported import TOLERANCE, not_run
from .graphs import SegmentFrames
from .onnx_file import require, write_onnx
from .runtimes import OnnxRuntime
from .steps import check_exact, deployed

_STATISTICS = "zscore_sector"


@dataclass(frozen=True)
class FrameSize:
    """Of the clips that a file takes as they are.

    Attributes:
        shape: (H, W).
        spacing_mm: (row, column) size of a pixel; None: pixels are square.
    """

    shape: tuple[int, int]
    spacing_mm: tuple[float, float] | None = None


def export_onnx(
    choice: ModelChoice, out: Path, *, checkpoint: str = "final", frame_size: FrameSize | None = None
) -> ExportedModel:
    """Write what `choice` predicts with to `out`: model.onnx and model_card.md.

    The file takes frames as bytes, on the model's grid or of one size, and gives masks and probabilities on that same
    grid. What is written is run by ONNX Runtime and compared with PyTorch first.

    Args:
        choice: of `choose_models`.
        out: a folder; files of that name in it are replaced.
        checkpoint: "final" or "best".
        frame_size: of the clips; None: they come on the model's grid.

    Raises:
        EchoPlanError: onnx or onnxruntime is missing, the models cannot predict (as `EchoPredictor` says), or something
            of them has no exact form in ONNX; the message says what and why.
    """
    require("onnx", "onnx")
    require("onnxruntime", "onnx")
    predictor = EchoPredictor.from_model_folders(
        choice.members,
        device="cpu",
        postprocessing=choice.postprocessing,
        checkpoint=checkpoint,
        trust_code=choice.trust_code,
    )
    _check_exact(predictor)
    networks = [network for member in predictor.members for network in member.networks]
    if any(isinstance(network, SteppingNetwork) for network in networks):
        return _export_steps(predictor, networks, out, checkpoint, frame_size)
    geometry = None if frame_size is None else _geometry(predictor, frame_size)
    plan = predictor.members[0].model.plan
    normalisations = [normalisation_for(member.networks[0], member.model.plan) for member in predictor.members]
    module = SegmentFrames(
        [member.networks for member in predictor.members],
        normalisations=normalisations,
        window=plan.frames,
        classes=predictor.description.classes,
        geometry=geometry,
    )
    made = ExportedModel(
        predictor,
        grid=plan.size,
        frames=plan.size if geometry is None else geometry.native_shape,
        geometry=geometry,
        statistics=_STATISTICS in normalisations,
        checkpoint=checkpoint,
    )
    file = out / layout.ONNX_FILE
    inputs = {"frames": torch.zeros(2, *made.frames, dtype=torch.uint8)}
    if made.statistics:
        inputs["statistics"] = torch.full((2,), torch.nan)
    free = {"frames": {0: "frames"}, "masks": {0: "frames"}, "probabilities": {1: "frames"}}
    about = {"echoplan": __version__, "model": predictor.name, "weights": predictor.identity}
    _write(Graph(module, inputs, ["masks", "probabilities"], free), file, about, (1, 3))
    write_text(out / layout.MODEL_CARD_FILE, model_card(made))
    return made


def _export_steps(
    predictor: EchoPredictor, networks: Sequence[nn.Module], out: Path, checkpoint: str, frame_size: FrameSize | None
) -> ExportedModel:
    """Write a network that is several graphs, a file for each of them."""
    network, *others = networks
    if others or not isinstance(network, SteppingNetwork):
        raise EchoPlanError(
            "a network of several files, with a program between them, cannot be averaged with others in one",
            remedy="export one fold of one model, -f 0, say",
        )
    if frame_size is not None:
        _geometry(predictor, frame_size)
        raise EchoPlanError(
            "a network of several files takes frames on the model's grid alone", remedy="export without --frame_size"
        )
    (member,) = predictor.members
    size = member.model.plan.size
    normalisation = normalisation_for(network, member.model.plan)
    told = {"statistics": torch.ones(2)} if normalisation == _STATISTICS else {}
    graphs = deployed(network.graphs(size), normalisation, told)
    made = ExportedModel(predictor, size, size, None, bool(told), checkpoint, network, graphs)
    about = {"echoplan": __version__, "model": predictor.name, "weights": predictor.identity}
    for name, graph in graphs.items():
        _write(graph, out / layout.step_file(name), about, (1, 3))
    write_text(out / layout.MODEL_CARD_FILE, model_card(made))
    return made


def _check_exact(predictor: EchoPredictor) -> None:
    """Stop at what a file could not do as EchoPlan does it."""
    first, *others = (member.model.plan for member in predictor.members)
    for member in predictor.members:
        for network in member.networks:
            check_exact(network)
    if predictor.postprocessing:
        names = " and ".join(step["name"] for step in predictor.postprocessing)
        raise EchoPlanError(
            f"the model's masks are postprocessed ({names}): which pixels hang together, and how long a frame lasts, "
            "no ONNX graph knows",
            remedy="export with --no_postprocessing, and postprocess the masks where the file is used",
        )
    if first.multi_dataset:
        raise EchoPlanError(
            "the model was trained on several datasets, and each clip is treated as those of the one it resembles "
            "most: that is found by comparing clips, not by a graph",
            remedy="export a model of one dataset",
        )
    for plan in others:
        if (plan.size, plan.protocol, plan.crop) != (first.size, first.protocol, first.crop):
            raise EchoPlanError(
                "the models see clips on different grids, whose probabilities are averaged on each clip's own",
                remedy="export the models one by one",
            )
        if plan.frames != 1 or first.frames != 1:
            raise EchoPlanError(
                "models that see several frames at once are averaged over windows of different lengths",
                remedy="export the models one by one",
            )


def _geometry(predictor: EchoPredictor, frame_size: FrameSize) -> Geometry:
    plan = predictor.members[0].model.plan
    if plan.crop:
        raise EchoPlanError(
            "the plan crops each clip to its sector, which is found by the connected regions of what moves: ONNX has "
            "no operator for them",
            remedy="export without --frame_size: the file then takes frames on the model's grid",
        )
    if plan.frames > 1:
        raise EchoPlanError(
            "the model sees windows of frames, standardised by all frames of the clip on the model's grid: a file that "
            "resizes a window does not know the others",
            remedy="export without --frame_size: the file then takes frames on the model's grid",
        )
    return plan_geometry(frame_size.shape, frame_size.spacing_mm, None, plan.size, plan.protocol)


@torch.no_grad()
def _write(graph: Graph, file: Path, about: Mapping[str, str], lengths: Sequence[int]) -> None:
    """Write a graph, and see that ONNX Runtime gives what PyTorch gives for noise; the file is removed if it does not.

    Args:
        graph, file, about: as `write_onnx` takes them.
        lengths: of the axes that may have any.
    """
    write_onnx(graph, file, about)
    try:
        _compare(graph, file, lengths)
    except Exception as error:  # the runtime raises its own kinds
        file.unlink(missing_ok=True)
        raise error if isinstance(error, EchoPlanError) else not_run("ONNX Runtime", error) from error


def _compare(graph: Graph, file: Path, lengths: Sequence[int]) -> None:
    runtime = OnnxRuntime(file, torch.device("cpu"))
    chance = torch.Generator().manual_seed(0)
    for length in lengths if graph.free else lengths[:1]:
        told = {}
        for name, example in graph.inputs.items():
            shape = [length if axis in graph.free.get(name, {}) else n for axis, n in enumerate(example.shape)]
            noise = torch.rand(shape, generator=chance)
            if example.dtype == torch.uint8:
                told[name] = (noise * 256).byte()
            else:  # statistics, places of frames and what is in memory are what they are
                told[name] = noise if example.is_floating_point() and name != "statistics" else example
        found = runtime({name: values.numpy() for name, values in told.items()})
        expected = dict(zip(graph.outputs, graph.module(*told.values()), strict=True))
        for name in (name for name, values in expected.items() if values.is_floating_point()):
            difference = float(np.abs(found[name] - expected[name].numpy()).max())
            if not difference <= TOLERANCE * max(1.0, float(expected[name].abs().max())):
                raise EchoPlanError(
                    f"ONNX Runtime's {name} differ from PyTorch's by up to {difference:.2g} at a length of {length}",
                    remedy="predict with PyTorch",
                )
