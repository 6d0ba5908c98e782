"""Checkpoints: tensors and plain types only, written whole, read without running code."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from echoplan.errors import EchoPlanError
from echoplan.files import atomic_path, plain

FORMAT = 1


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint beside its name and move it into place.

    Raises:
        EchoPlanError: the disk is full; the checkpoint that was there stays.
    """
    packed = pack_checkpoint(content)
    with atomic_path(path) as temporary:
        # Written by Python: on a full disk torch's own writer fails with one of several RuntimeErrors.
        temporary.write_bytes(packed)


def pack_checkpoint(content: Mapping[str, Any]) -> memoryview:
    """A checkpoint as its file holds it."""
    packed = io.BytesIO()
    torch.save({"format": FORMAT, **content}, packed)
    return packed.getbuffer()


def load_checkpoint(path: Path, *, device: torch.device | str = "cpu", mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint.

    Args:
        path: the file.
        device: where its tensors go.
        mapped: whether the tensors stay in the file, on the CPU, until they are looked at.

    Raises:
        EchoPlanError: the file is missing, damaged, holds more than tensors and plain types, or is of a newer format.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True, mmap=mapped)
    except FileNotFoundError as error:
        raise EchoPlanError("the checkpoint is missing", file=path, remedy="train first, or resume with --c") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        first_line = str(error).partition("\n")[0]
        raise EchoPlanError(
            f"this is no readable checkpoint: {first_line}", file=path, remedy="restore the file, or train again"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise EchoPlanError("this checkpoint is of another format", file=path, remedy="use the EchoPlan that wrote it")
    return content


def random_state() -> dict[str, Any]:
    """The state of torch's generators (data order and augmentation are functions of seed and epoch and need none)."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        # This process's GPU alone: asking the others would take memory on each of them, for each process.
        state["cuda"] = [torch.cuda.get_rng_state()]
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` took."""
    torch.set_rng_state(state["cpu"].cpu())
    if torch.cuda.is_available() and "cuda" in state:
        generators = [item.cpu() for item in state["cuda"]]
        if len(generators) == 1:
            torch.cuda.set_rng_state(generators[0])
        else:  # an earlier EchoPlan's checkpoint, of a machine with several GPUs
            torch.cuda.set_rng_state_all(generators)


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they compare after a way through JSON or a checkpoint (tuples become lists)."""
    return dict(plain(settings))
