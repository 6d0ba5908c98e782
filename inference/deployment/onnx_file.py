"""Networks written as ONNX."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch

from echoplan.errors import EchoPlanError
from echoplan.extras import how_to_install
from echoplan.files import atomic_path
from echoplan.networks.steps import Graph

OPSET = 18


def require(package: str, extra: str) -> None:
    """Stop where a package is missing.

    Raises:
        EchoPlanError: it is not installed; the message names the extra that brings it.
    """
    if find_spec(package) is None:
        raise EchoPlanError(f"this needs the package {package}, which is not installed", remedy=how_to_install(extra))


def write_onnx(graph: Graph, file: Path, about: Mapping[str, str]) -> None:
    """Write a graph as one ONNX file, moved into place when it is whole.

    Args:
        graph: what to write.
        file: where.
        about: kept in the file as its metadata.

    Raises:
        EchoPlanError: the package onnx is missing, or the graph has an operation that ONNX lacks.
    """
    require("onnx", "onnx")
    import onnx

    with atomic_path(file) as temporary:
        with _quiet(), torch.no_grad():
            try:
                # Traced: an exported program of torch.export takes thirty times as long to make, to the same operators.
                torch.onnx.export(
                    graph.module.eval(),
                    tuple(graph.inputs.values()),
                    str(temporary),
                    dynamo=False,
                    opset_version=OPSET,
                    input_names=list(graph.inputs),
                    output_names=list(graph.outputs),
                    dynamic_axes={name: dict(axes) for name, axes in graph.free.items()},
                )
            except (torch.onnx.errors.OnnxExporterError, RuntimeError, TypeError) as error:
                raise EchoPlanError(
                    f"this network cannot be written as ONNX: {str(error).strip().splitlines()[0]}",
                    remedy="predict with PyTorch (--backend torch)",
                ) from error
        model = onnx.load(temporary)
        onnx.helper.set_model_props(model, dict(about))
        onnx.save(model, temporary)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on what it traces; what it makes is compared with the network."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(before)
