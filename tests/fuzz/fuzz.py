"""Read damaged files by the thousand: python tests/fuzz/fuzz.py --inputs 200000 --workers 2

Each input is made from a good file (seeds.py, mutators.py) by its number alone, so that it can be made again:
`--first NUMBER --inputs 1`. A worker reads many inputs, with 4 GB of memory beyond what it starts with, and 10 seconds
for each; when it dies or hangs, another goes on behind the input that did it. What must not happen, and ends with exit
code 1:

    death     the process ends            hang      10 seconds of computing, or 60 of waiting, are over
    untyped   an exception that is no EchoPlanError, or one that names no file
    quotes    a message repeats what stands in a header
    outside   a file outside the clip's folder is read, or any file is written
    pixels    damage that a checksum tells of gives other pixels
    shape     frames have another size, or are fewer, than `probe_clip` told, or are no clip at all
"""

from __future__ import annotations

import argparse
import collections
import logging
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
from mutators import mutate, outside
from seeds import SECRET, Seed, make_seeds

from echoplan.errors import EchoPlanError
from echoplan.imageio import probe_clip, read_clip, read_mask

MEMORY, SECONDS, WAITING = 4 * 2**30, 10, 60
_FORK = multiprocessing.get_context("fork")
_NO_COUNT = (".mkv", ".webm", ".wmv", ".mpg")  # containers that tell no number of frames
_OUTSIDE_VALUE = 0xA7  # all pixels of the file that must not be read
_BATCH = 500  # inputs a process, so that what leaks does not last


def files_of(number: int, seeds: list[Seed], place: Path) -> tuple[Seed, dict[str, bytes], bool]:
    """The seed and the damaged files of an input, and whether a checksum must notice the damage."""
    rng = random.Random(number)
    seed = seeds[number % len(seeds)]
    files, noticed = mutate(seed, seeds, rng)
    return seed, {name: outside(content, str(place / "outside.raw")) for name, content in files.items()}, noticed


def judge(seed: Seed, files: dict[str, bytes], folder: Path, good: np.ndarray | None) -> list[tuple[str, str]]:
    """What must not happen and does, as (kind, what): nothing where all is well.

    Args:
        seed, files: what is read, written to `folder`.
        good: frames that must come out if any do; None where others may.
    """
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    told, findings = None, []
    for use in (probe_clip, read_clip, read_mask):
        try:
            result = use(folder / seed.path)
        except EchoPlanError as error:
            if not error.file or not error.file.startswith(str(folder)):
                findings.append(("untyped", f"{use.__name__}: names no file: {error}"))
            names_data_file = "header's data file" in str(error)  # which may be called anything
            if any(part in str(error) for part in SECRET.split("^")) and not names_data_file:
                findings.append(("quotes", f"{use.__name__}: {error}"))
            continue
        except Exception:
            findings.append(("untyped", f"{use.__name__}: {traceback.format_exc()}"))
            continue
        if use is probe_clip:
            told = result.shape
            continue
        frames = result.frames if use is read_clip else result
        if frames.ndim != 3 or not frames.size or frames.dtype not in (np.uint8, np.uint16, np.float32):
            findings.append(("shape", f"{use.__name__}: {frames.dtype} {frames.shape}"))
        fewer = told and len(frames) < told[0] and not seed.path.endswith(_NO_COUNT)
        if use is read_clip and told and (fewer or told[1:] != frames.shape[1:]):
            findings.append(("shape", f"told {told}, read {frames.shape}"))
        if (frames == _OUTSIDE_VALUE).all():
            findings.append(("outside", f"{use.__name__} reads another file"))
        if use is read_clip and good is not None and not np.array_equal(frames, good):
            findings.append(("pixels", "other pixels than the good file's"))
    there = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    if there != set(files):
        findings.append(("outside", f"files were written: {there - set(files)}"))
    return findings


def work(inputs: range, seeds: list[Seed], place: Path, good: dict[str, np.ndarray], line: Connection) -> None:
    """Read inputs one after another; says each number before, and what it finds."""
    most = MEMORY + int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    logging.disable()
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    empty = place / "empty"
    os.environ["TMPDIR"] = tempfile.tempdir = str(empty)
    os.chdir(empty)
    for number in inputs:
        line.send((number, []))
        seed, files, noticed = files_of(number, seeds, place)
        folder = place / f"{os.getpid()}-{number}"
        line.send((number, judge(seed, files, folder, good[seed.name] if noticed else None)))
        shutil.rmtree(folder)
    line.send((inputs.stop, [("outside", f"files were written: {os.listdir(empty)}")] if os.listdir(empty) else []))


@dataclass
class _Reader:
    """A process that reads inputs."""

    process: multiprocessing.process.BaseProcess
    line: Connection
    inputs: range
    at: int
    since: float
    spent: float = 0.0  # of CPU, before the input it is at

    def cpu(self) -> float:
        """Seconds that the process has computed; on a busy machine far fewer than have passed."""
        try:
            ticks = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        except OSError:  # it has ended
            return 0.0
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def run(numbers: range, workers: int, everything: tuple[list[Seed], Path, dict]) -> Iterator[tuple[int, str, str]]:
    """Read all inputs; (number, kind, what) of what must not happen.

    A process takes a batch of numbers; where it dies or hangs, another goes on behind the input that did it.
    """
    waiting = [range(at, min(at + _BATCH, numbers.stop)) for at in range(numbers.start, numbers.stop, _BATCH)][::-1]
    readers: list[_Reader] = []
    while waiting or readers:
        while waiting and len(readers) < workers:
            inputs, (ours, theirs) = waiting.pop(), multiprocessing.Pipe(duplex=False)
            process = _FORK.Process(target=work, args=(inputs, *everything, theirs))
            process.start()
            theirs.close()
            readers.append(_Reader(process, ours, inputs, inputs.start, time.monotonic()))
        ready = wait([reader.line for reader in readers], timeout=1)
        for reader in list(readers):
            if reader.line in ready:
                try:
                    reader.at, findings = reader.line.recv()
                    reader.since, reader.spent = time.monotonic(), reader.cpu()
                    yield from ((reader.at, *finding) for finding in findings)
                    continue
                except (EOFError, OSError):
                    reader.process.join()
                    if reader.process.exitcode:
                        yield reader.at, "death", f"exit code {reader.process.exitcode}"
            elif time.monotonic() - reader.since > WAITING or reader.cpu() - reader.spent > SECONDS:
                reader.process.kill()
                reader.process.join()
                yield reader.at, "hang", f"{SECONDS} seconds of computing, or {WAITING} of waiting, are over"
            else:
                continue
            readers.remove(reader)
            if reader.at + 1 < reader.inputs.stop:
                waiting.append(range(reader.at + 1, reader.inputs.stop))


def main() -> int:
    """Exit code 1 where something was found."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--inputs", type=int, default=200_000)
    options.add_argument("--first", type=int, default=0, help="number of the first input")
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--keep", type=Path, help="folder for the inputs that found something")
    chosen = options.parse_args()
    start, kinds = time.monotonic(), collections.Counter[str]()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        for name in ("empty", "seeds"):
            (place / name).mkdir()
        (place / "outside.raw").write_bytes(bytes([_OUTSIDE_VALUE]) * 2**16)
        seeds, good = make_seeds(place / "seeds"), {}
        for seed in seeds:  # each is a good file
            assert judge(seed, seed.files, place / "good" / seed.name, None) == [], seed.name
            good[seed.name] = read_clip(place / "good" / seed.name / seed.path).frames
        numbers = range(chosen.first, chosen.first + chosen.inputs)
        for number, kind, what in run(numbers, chosen.workers, (seeds, place, good)):
            kinds[kind] += 1
            seed, files, _ = files_of(number, seeds, place)
            print(f"{kind}: input {number}, {seed.name}\n    {what.strip()[-1500:]}\n", flush=True)
            for name, content in files.items() if chosen.keep else ():
                kept = chosen.keep / f"{kind}-{number}-{seed.name}" / name
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_bytes(content)
    seconds = time.monotonic() - start
    print(f"{len(seeds)} seeds, {chosen.inputs} inputs in {seconds:.0f} s: {dict(kinds) or 'nothing found'}")
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(main())
