"""Pretrained weights: where they are found, and how they are read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from echoplan.errors import EchoPlanError
from echoplan.files import sha256_of

_log = logging.getLogger(__name__)
_ENDINGS = (".pth", ".pt")
_PARALLEL = "module."
_HALF_ENDS = torch.finfo(torch.float16).max
_downloads = ContextVar("downloads", default=True)
_FROM_RANDOM = "--set pretrained=false"
_options = ContextVar("options", default=("--weights FILE", _FROM_RANDOM))  # of the command that is at work


@dataclass(frozen=True)
class WeightsSource:
    """Where weights are published.

    Attributes:
        url: the file's address.
        sha256: its SHA-256 in hexadecimal, or the first digits of it.
        confirmed: whether the digest is the publisher's own.
        note: what the weights are, under which licence, and where the digest is from.
    """

    url: str
    sha256: str
    confirmed: bool = True
    note: str = ""

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


def _read_lock() -> dict[str, WeightsSource]:
    lock = json.loads((Path(__file__).parent / "weights.json").read_text(encoding="utf-8"))
    return {name: WeightsSource(**about) for name, about in lock.items()}


SOURCES: dict[str, WeightsSource] = _read_lock()


def find_weights(
    name: str,
    *,
    path: bool | str | Path | None = None,
    environment: Mapping[str, str] = os.environ,
    download: bool = True,
) -> Path:
    """The file with the pretrained weights called `name`.

    Looked for in this order: `path` (a file, or a folder to search), the folder ``$ECHOPLAN_WEIGHTS``, torch's own
    cache, the publisher's address in the lock file ``weights.json``. What is downloaded, or lies in the cache under the
    published name, must have the digest that is stated there (1 s for 500 MB). In a folder a file fits that is called
    `name` with the ending .pth or .pt, or that begins with `name` and "-", "_" or ".", as ``resnet18-f37072fd.pth``
    does.

    Args:
        name: for instance "resnet18".
        path: where the user says the weights are; then nowhere else is looked. True is nowhere in particular.
        environment: where ``ECHOPLAN_WEIGHTS`` is read.
        download: whether the network may be used.

    Raises:
        EchoPlanError: there is no such file, it could not be downloaded intact, or it is not the published one.
    """
    if isinstance(path, str | Path):
        return _at(name, Path(path).expanduser())
    source = SOURCES.get(name)
    folder = environment.get("ECHOPLAN_WEIGHTS")
    if folder and (found := _in_folder(name, Path(folder).expanduser())):
        return found
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    if source is not None and (cache / source.file_name).is_file():
        return _checked(cache / source.file_name, source)
    if source is None or not (download and _downloads.get()):
        raise EchoPlanError(
            f"no weights {name!r} were found{f' in {folder}' if folder else ''}", remedy=_how_to_get(name, source)
        )
    return _download(name, source, cache)


@contextmanager
def no_downloads() -> Iterator[None]:
    """Weights that are not on this machine are missing, as long as this lasts."""
    token = _downloads.set(False)
    try:
        yield
    finally:
        _downloads.reset(token)


@contextmanager
def weights_options(file: str = "", random: str = "") -> Iterator[None]:
    """As long as this lasts, errors name the options of another command than `echoplan_train`.

    Args:
        file: by which it takes a file of weights; empty where by none.
        random: by which it starts from random weights; empty where by none.
    """
    token = _options.set((file, random))
    try:
        yield
    finally:
        _options.reset(token)


def load_weights(
    network: nn.Module,
    path: str | Path,
    *,
    adapt: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    ignore: Sequence[str] = (),
    new: Sequence[str] = (),
) -> None:
    """Load the state dict in `path` into `network`, in the network's own precision.

    Args:
        network: gets the weights, in place.
        path: a file with a state dict (or a dict that holds one under "state_dict" or "model"), of any floating type;
            "module." before all of its keys, which DataParallel leaves, is taken off.
        adapt: changes the state dict (float32) before it is compared, for instance to other input channels.
        ignore: beginnings of the file's keys that are left aside, such as "fc.".
        new: beginnings of the network's keys that the file need not have.

    Raises:
        EchoPlanError: the file cannot be read, or its keys or shapes are not the network's; the message names them.
    """
    state = {
        key: value.float() if value.is_floating_point() else value
        for key, value in finite_variances(read_state(Path(path)), Path(path)).items()
        if not key.startswith(tuple(ignore))
    }
    own = network.state_dict()
    try:
        state = adapt(state) if adapt else state
    except KeyError as error:
        raise EchoPlanError(f"the weights lack {error}", file=path, remedy="choose the file of this network") from error
    # Files written before PyTorch 0.4.1 have no num_batches_tracked, and nothing here reads it.
    missing = [
        key
        for key in own
        if key not in state and not key.startswith(tuple(new)) and not key.endswith("num_batches_tracked")
    ]
    unexpected = [key for key in state if key not in own]
    misshapen = [
        f"{key} is {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in state
        if key in own and state[key].shape != own[key].shape
    ]
    all_faults = {"lack": missing, "have besides": unexpected, "differ in shape:": misshapen}
    all_faults["are not finite in"] = not_finite(state)
    if faults := [f"{what} {_some(keys)}" for what, keys in all_faults.items() if keys]:
        raise EchoPlanError(
            f"the weights do not fit {type(network).__name__}: they {'; they '.join(faults)}",
            file=path,
            remedy="choose the file of this network and this size",
        )
    network.load_state_dict(state, strict=False)
    _log.info("loaded pretrained weights from %s", path)


def _at(name: str, path: Path) -> Path:
    if path.is_file():
        return path
    if path.is_dir() and (found := _in_folder(name, path)):
        return found
    what = f"the folder has no weights {name!r}" if path.is_dir() else "there is no such file of weights"
    raise EchoPlanError(what, file=path, remedy=_how_to_get(name, SOURCES.get(name)))


def _in_folder(name: str, folder: Path) -> Path | None:
    pattern = re.compile(rf"{re.escape(name)}([-_.].*)?\.({'|'.join(e[1:] for e in _ENDINGS)})")
    found = sorted(
        (file for file in folder.glob("*") if file.is_file() and pattern.fullmatch(file.name)),
        key=lambda file: (file.stem != name, file.name),
    )
    if len(found) > 1:
        _log.warning("several files in %s could be the weights %s; taking %s", folder, name, found[0].name)
    return found[0] if found else None


def _checked(file: Path, source: WeightsSource) -> Path:
    """A file that goes by its published name, if its SHA-256 is the published one."""
    if not (digest := sha256_of(file)).startswith(source.sha256):
        raise EchoPlanError(
            f"these are not the published weights: their SHA-256 begins with {digest[:8]}, not with "
            f"{source.sha256[:8]}",
            file=file,
            remedy="remove the file, so that it is downloaded anew"
            + (f"; weights of your own go by {own}" if (own := _options.get()[0]) else ""),
        )
    return file


def _download(name: str, source: WeightsSource, folder: Path) -> Path:
    target = folder / source.file_name
    _log.info("downloading %s to %s", source.url, target)
    if not source.confirmed:
        _log.warning("the SHA-256 that %s is checked by is unconfirmed: %s", source.file_name, source.note)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(source.url, str(target), hash_prefix=source.sha256, progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:  # no connection or no room; or a SHA-256 that does not agree
        raise EchoPlanError(
            f"the weights {name!r} could not be downloaded: {error}", file=source.url, remedy=_how_to_get(name, source)
        ) from error
    return target


def _how_to_get(name: str, source: WeightsSource | None) -> str:
    origin = f"download {source.url} on a machine with a connection and" if source else f"get the file ({name}.pth) and"
    file, random = _options.get()
    by_path = f", or give its path ({file})" if file else ""
    anew = f"; {random} starts from random weights" if random else ""
    return f"{origin} put it into the folder that ECHOPLAN_WEIGHTS names{by_path}{anew}"


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file of weights, as `load_weights` takes it.

    Raises:
        EchoPlanError: the file cannot be read or holds none.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is no checkpoint can make the unpickler stumble in any way
        raise EchoPlanError(
            f"the weights cannot be read ({why_unreadable(path, error)})",
            file=path,
            remedy="get the file anew; it must hold tensors only (a state dict)",
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise EchoPlanError("the file holds no state dict", file=path, remedy="choose a file of weights")
    parallel = all(key.startswith(_PARALLEL) for key in content)
    return {key[len(_PARALLEL) :] if parallel else key: value for key, value in content.items()}


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that hold NaN or infinities; 0.1 s for 100 million weights."""
    found = []
    for key, value in state.items():
        if value.is_floating_point() and value.numel():
            low, high = torch.aminmax(value)  # NaN if there is any
            if not (low.isfinite() and high.isfinite()):
                found.append(key)
    return found


def finite_variances(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The state without infinite variances of batch normalisation, which would silence their channels.

    Weights that were saved in half precision have such, for it ends at 65504: that is then nearest to what they were.

    Args:
        state: left as it is.
        path: where it is from, for the warning that says what was changed.
    """
    repaired = dict(state)
    for key, value in state.items():
        if key.endswith("running_var") and (count := int(value.isposinf().sum())):
            repaired[key] = torch.where(value.isposinf(), _HALF_ENDS, value)
            _log.warning(
                "%s: %d of %d variances in %s were too large for half precision and are taken as its largest number, "
                "%d", path, count, value.numel(), key, _HALF_ENDS,
            )  # fmt: skip
    return repaired


def why_unreadable(path: Path, error: Exception) -> str:
    """Why PyTorch cannot read a file of weights, without its advice, which would run what the file holds.

    Args:
        path: the file.
        error: what torch.load raised.
    """
    with open(path, "rb") as stream:
        start = stream.read(200)
    if not start:
        return "the file is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS to the file, not the file; git lfs pull fetches it"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, not the file; download it anew"
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or holds more than tensors and plain types"
    return str(error).partition("\n")[0] or type(error).__name__


def _some(keys: Sequence[str], most: int = 5) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """A short name for the parameters and buffers of a network's state, the same on every device and machine."""
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:20]
