"""Damage: of bits, lengths, fields and words, at random and behind the checksums that would notice it."""

from __future__ import annotations

import gzip
import random
import re
import zlib
from pathlib import Path

from seeds import SECRET, Seed

_NUMBERS = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
_HERE = Path(__file__).parent
_WORDS = [*(_HERE / "words.txt").read_text().splitlines(), "\0", "\xff\xfe", "%" + "d" * 3000, "x" * 70000, SECRET]
_KEYS = (_HERE / "keys.txt").read_text().splitlines()


def mutate(seed: Seed, seeds: list[Seed], rng: random.Random) -> tuple[dict[str, bytes], bool]:
    """The seed's files, one of them damaged; and whether all damage lies where a checksum must notice it."""
    files = dict(seed.files)
    name = rng.choice(list(files))
    content = files[name]
    behind = _BEHIND.get(seed.kind) if rng.random() < 0.5 else None
    damaged = (behind or _at_random)(content, seeds, rng)
    start, end = seed.guarded or (0, 0)
    same_end = damaged.endswith(content[end:]) and len(damaged) >= len(content) - (end - start)
    noticed = seed.guarded is not None and behind is None and damaged[:start] == content[:start] and same_end
    return files | {name: damaged}, noticed


def _at_random(content: bytes, seeds: list[Seed], rng: random.Random) -> bytes:
    damaged = bytearray(content)
    early = rng.random() < 0.5  # where headers are
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        reach = max(1, min(len(damaged), rng.choice((64, 400, 4000)) if early else len(damaged)))
        place = rng.randrange(reach)
        rng.choice(_DAMAGE)(damaged, place, seeds, rng)
        if not damaged:
            break
    return bytes(damaged)


def _flip(content: bytearray, place: int, seeds: list[Seed], rng: random.Random) -> None:
    content[place] ^= 1 << rng.randrange(8)


def _set(content: bytearray, place: int, seeds: list[Seed], rng: random.Random) -> None:
    content[place] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))


def _number(content: bytearray, place: int, seeds: list[Seed], rng: random.Random) -> None:
    size = rng.choice((2, 4, 8))
    place -= place % rng.choice((1, 2, 4))
    number = rng.choice(_NUMBERS) % 256**size
    content[place : place + size] = number.to_bytes(size, rng.choice(("little", "big")))


def _cut(content: bytearray, place: int, seeds: list[Seed], rng: random.Random) -> None:
    del content[place:]


def _remove(content: bytearray, place: int, seeds: list[Seed], rng: random.Random) -> None:
    del content[place : place + rng.choice((1, 2, 4, 16, 200))]


def _repeat(content: bytearray, place: int, seeds: list[Seed], rng: random.Random) -> None:
    content[place:place] = content[place : place + rng.choice((1, 2, 8, 64, 1000))] * rng.choice((1, 1, 2, 50))


def _splice(content: bytearray, place: int, seeds: list[Seed], rng: random.Random) -> None:
    other = rng.choice(list(rng.choice(seeds).files.values()))
    start, length = rng.randrange(len(other)), rng.choice((4, 16, 100, 2000))
    content[place : place + rng.choice((0, length))] = other[start : start + length]


def _zeros(content: bytearray, place: int, seeds: list[Seed], rng: random.Random) -> None:
    length = rng.choice((4, 16, 100))
    content[place : place + length] = bytes([rng.choice((0, 255))]) * length


_DAMAGE = (_flip, _flip, _flip, _set, _set, _number, _number, _cut, _remove, _repeat, _splice, _zeros)


def _in_words(content: bytes, seeds: list[Seed], rng: random.Random) -> bytes:
    """A text header with a value, a key or a line that is another one."""
    end = content.find(b"ElementDataFile")
    end = content.find(b"\n\n") if end < 0 else content.find(b"\n", end)
    lines = content[: end if end > 0 else None].split(b"\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        number = rng.randrange(len(lines))
        sign = (
            rng.choice((b" = ", b": ", b":=")) if rng.random() < 0.1 else b" = " if b" = " in content[:200] else b": "
        )
        key, _, value = lines[number].partition(sign)
        word = rng.choice(_WORDS).encode("latin-1")
        if rng.random() < 0.3:
            key = rng.choice(_KEYS).encode()
        elif value and rng.random() < 0.3:  # one of several numbers
            words = value.split()
            words[rng.randrange(len(words))] = word
            word = b" ".join(words)
        line = key + sign + word
        if rng.random() < 0.2:
            lines.insert(number, line)
        elif rng.random() < 0.1:
            del lines[number]
        else:
            lines[number] = line
        if not lines:
            break
    return b"\n".join(lines) + (content[end:] if end > 0 else b"")


def _in_gzip(content: bytes, seeds: list[Seed], rng: random.Random) -> bytes:
    inside = _at_random(gzip.decompress(content), seeds, rng)
    behind = rng.choice((b"", b"", b"", bytes(5000), b"x", gzip.compress(bytes(2**20))))
    return gzip.compress(inside, 1) + behind


def _in_png(content: bytes, seeds: list[Seed], rng: random.Random) -> bytes:
    """A PNG with a damaged chunk and the right checksums; also of its pixels, inflated."""
    chunks, place = [], 8
    while place + 12 <= len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        chunks.append([content[place + 4 : place + 8], content[place + 8 : place + 8 + length]])
        place += 12 + length
    chunk = rng.choice(chunks)
    if chunk[0] == b"IDAT" and rng.random() < 0.7:
        chunk[1] = zlib.compress(_at_random(zlib.decompress(chunk[1]), seeds, rng))
    else:
        chunk[1] = _at_random(chunk[1] or b"\0", seeds, rng)
    if rng.random() < 0.1:
        chunks.insert(rng.randrange(len(chunks)), list(rng.choice(chunks)))
    packed = (
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big") for kind, body in chunks
    )
    return content[:8] + b"".join(packed)


def _in_deflated(content: bytes, seeds: list[Seed], rng: random.Random) -> bytes:
    end = 144 + int.from_bytes(content[140:144], "little")
    engine = zlib.compressobj(1, zlib.DEFLATED, -15)
    inside = _at_random(zlib.decompress(content[end:], -15), seeds, rng)
    return content[:end] + engine.compress(inside) + engine.flush()


def outside(content: bytes, path: str) -> bytes:
    """With the place of a file that must not be read where the word OUTSIDE stands."""
    return re.sub(rb"OUTSIDE", lambda _: path.encode(), content)


_BEHIND = {"text": _in_words, "gzip": _in_gzip, "png": _in_png, "deflated": _in_deflated}
