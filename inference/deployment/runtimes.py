"""ONNX Runtime and OpenVINO behind one call: arrays by name in, arrays by name out."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from echoplan.errors import EchoPlanError

from .onnx_file import require

_SHAPES_KEPT = 8  # for each of which OpenVINO compiles anew


class Runtime(Protocol):
    """What computes an ONNX file."""

    def __call__(self, inputs: dict[str, np.ndarray], *, fast: bool = False) -> dict[str, np.ndarray]:
        """All outputs; `fast`: in bfloat16 where it can."""
        ...


class OnnxRuntime:
    """ONNX Runtime on the CPU, with as many threads as PyTorch has, or on the GPU of CUDA.

    On CPUs it has no bfloat16: mixed precision changes nothing there.

    Raises:
        EchoPlanError: it is not installed, or cannot use the device.
    """

    def __init__(self, file: Path, device: torch.device) -> None:
        require("onnxruntime", "onnx")
        import onnxruntime

        provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise EchoPlanError(
                "the ONNX Runtime that is installed has no CUDA",
                remedy="pip install onnxruntime-gpu in its place, or use --device cpu",
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        settings = [{"device_id": str(device.index or 0)}] if device.type == "cuda" else None
        self._session = onnxruntime.InferenceSession(file, options, [provider], settings)
        self._outputs = [output.name for output in self._session.get_outputs()]

    @staticmethod
    def has_cuda() -> bool:
        """Whether the one installed can use a GPU of CUDA."""
        require("onnxruntime", "onnx")
        import onnxruntime

        return torch.cuda.is_available() and "CUDAExecutionProvider" in onnxruntime.get_available_providers()

    def __call__(self, inputs: dict[str, np.ndarray], *, fast: bool = False) -> dict[str, np.ndarray]:
        """See `Runtime`."""
        return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))


class OpenVINO:
    """OpenVINO on the CPU, with as many threads as PyTorch has.

    The file is compiled for each shape of its inputs, which is quicker to run than one for any shape.

    Raises:
        EchoPlanError: it is not installed, or another device than the CPU is asked for.
    """

    def __init__(self, file: Path, device: torch.device) -> None:
        require("openvino", "openvino")
        if device.type != "cpu":
            raise EchoPlanError(f"OpenVINO runs on the CPU here, not on {device}", remedy="use --device cpu")
        self._core = _core()
        self._model = self._core.read_model(file)
        self._compiled: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def __call__(self, inputs: dict[str, np.ndarray], *, fast: bool = False) -> dict[str, np.ndarray]:
        """See `Runtime`."""
        compiled = self._for_shapes({name: values.shape for name, values in inputs.items()}, fast)
        found = compiled(inputs)
        return {output.get_any_name(): np.array(found[output]) for output in compiled.outputs}

    def _for_shapes(self, shapes: dict[str, tuple[int, ...]], fast: bool) -> Any:
        key = (fast, *sorted(shapes.items()))
        if key in self._compiled:
            self._compiled.move_to_end(key)
            return self._compiled[key]
        fixed = self._model.clone()
        fixed.reshape({name: list(shape) for name, shape in shapes.items()})
        while len(self._compiled) >= _SHAPES_KEPT:
            self._compiled.popitem(last=False)
        # Without the hint it takes bfloat16 by itself where the CPU has it.
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if fast else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._compiled[key] = self._core.compile_model(fixed, "CPU", settings)
        return self._compiled[key]


@cache
def _core() -> Any:
    """OpenVINO's one core of this process, which is never let go.

    Each core changes the stack on which this thread handles signals. Of several that are let go the last one leaves the
    thread one that is freed: the next signal, Ctrl-C's too, would end the process by a segmentation fault.
    """
    import openvino

    return openvino.Core()


RUNTIMES: dict[str, type[OnnxRuntime] | type[OpenVINO]] = {"onnx": OnnxRuntime, "openvino": OpenVINO}
