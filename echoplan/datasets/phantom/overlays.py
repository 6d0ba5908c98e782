"""What a scanner writes over its pictures: names of settings, a depth scale, a grey bar, the ECG."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_WORDS = (
    "HR 72 bpm", "2.5 MHz", "MI 1.1", "TIS 0.8", "15.0 cm", "FR 50 Hz", "Gn 52", "C 60", "A4C", "A2C", "Adult Echo",
    "P 1.7 3.4", "DR 65", "75%", "HGen", "V", "0 dB", "S5-1", "*** bpm",
)  # fmt: skip


def draw_overlays(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Frames (T, H, W) uint8 with what the generator draws, in grey, the same in each frame but for the ECG's mark."""
    height, width = frames.shape[1:]
    picture = Image.new("L", (width, height))
    draw = ImageDraw.Draw(picture)
    size = max(6, round(height * rng.uniform(0.035, 0.06)))
    grey = int(rng.integers(110, 256))
    if rng.random() < 0.7:
        _write_words(draw, rng, size, grey)
    if rng.random() < 0.4:
        _draw_scale(draw, rng, grey)
    if rng.random() < 0.3:
        bar = round(height * rng.uniform(0.15, 0.4))
        for row in range(bar):
            draw.line([(width - 6, 4 + row), (width - 3, 4 + row)], fill=255 - 255 * row // bar)
    trace = _ecg(rng, width, height) if rng.random() < 0.5 else None
    if trace is not None:
        draw.line(list(enumerate(trace.tolist())), fill=grey, width=1)
    drawn = np.asarray(picture)
    marked = np.maximum(frames, drawn)
    if trace is not None:  # the mark runs with the beat
        for number, frame in enumerate(marked):
            column = min(width - 2, round((0.2 + 0.6 * number / max(1, len(frames) - 1)) * width))
            row = int(np.clip(trace[column], 3, height - 4))
            frame[row - 3 : row + 4, column : column + 2] = grey
    return marked


def _write_words(draw: ImageDraw.ImageDraw, rng: np.random.Generator, size: int, grey: int) -> None:
    width, height = draw.im.size
    font = ImageFont.load_default(size)
    for corner in rng.permutation(4)[: int(rng.integers(1, 5))]:
        lines = rng.choice(_WORDS, int(rng.integers(1, 5)))
        x = 2 if corner % 2 == 0 else width - 2 - round(size * 4.2)
        y = 2 if corner < 2 else height - 4 - round(1.25 * size * len(lines))
        for number, line in enumerate(lines):
            draw.text((x, y + 1.2 * size * number), str(line), fill=grey, font=font)


def _draw_scale(draw: ImageDraw.ImageDraw, rng: np.random.Generator, grey: int) -> None:
    """Ticks a centimetre apart, every fifth one longer."""
    width, height = draw.im.size
    ticks = int(rng.integers(10, 22))
    column = int(rng.choice([3, width - 4]))
    for number in range(ticks):
        row, reach = round((number + 0.5) * height / ticks), 3 if number % 5 == 0 else 1
        draw.line([(column - reach, row), (column + reach, row)], fill=grey)


def _ecg(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Rows of an ECG's trace, one a column: P wave, QRS complex and T wave of each beat."""
    beat = width / rng.uniform(1.2, 4.5)
    phase = np.mod(np.arange(width) / beat + rng.random(), 1.0)
    waves = ((0.12, 0.15, 0.03), (-0.15, 0.27, 0.01), (1.0, 0.3, 0.014), (-0.25, 0.33, 0.012), (0.25, 0.58, 0.05))
    trace = sum(size * np.exp(-(((phase - place) / spread) ** 2)) for size, place, spread in waves)
    base = height * rng.uniform(0.86, 0.97)
    return np.clip(np.rint(base - height * rng.uniform(0.04, 0.12) * trace), 1, height - 2)
