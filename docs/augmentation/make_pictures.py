"""The pictures of docs/augmentation.md: each ultrasound transform on a simulated clip.

python docs/augmentation/make_pictures.py [--size PIXELS]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from skimage.segmentation import find_boundaries

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from echoplan.datasets.phantom import PhantomClip, PhantomSettings, make_patient
from echoplan.training.augmentation import (
    ULTRASOUND,
    AttenuationDraw,
    CineSpeedDraw,
    FrameDropDraw,
    HazeDraw,
    SectorMove,
    ShadowDraw,
    SpeckleDraw,
    TimeGainDraw,
)

FOLDER = Path(__file__).resolve().parent
OUTLINE = (255, 190, 40)
FILM = 8  # frames of the pictures of time
COLOURS = 48  # grey levels and an outline need no more, and the files stay small
SHOWN: dict[str, Any] = {
    "rotation": SectorMove(degrees=12),
    "depth": SectorMove(scale=0.85),
    "field_of_view": SectorMove(opening=1.1),
    "speckle": SpeckleDraw(phasors=15, strength=0.2, lines=60, samples=60, seed=1),
    "attenuation": AttenuationDraw(1.2),
    "shadow": ShadowDraw(0.6, beam=0.3, depth=0.5, width=0.1, length=0.25),
    "haze": HazeDraw(0.45, radius=0.35, width=0.08, seed=1),
    "time_gain": TimeGainDraw((0.75, 1.25, 0.8, 1.2, 0.75, 1.2, 0.8, 1.25)),
    "cine_speed": CineSpeedDraw(1.25, anchor=0.0),
    "frame_drop": FrameDropDraw(0.3, seed=2),
}


def outlined(frame: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(H, W, 3): the frame with the ventricle's outline."""
    picture = np.repeat(frame.round().astype(np.uint8)[..., None], 3, axis=2)
    picture[find_boundaries(labels == 1, mode="inner")] = OUTLINE
    return picture


def numbered(picture: np.ndarray, number: int) -> np.ndarray:
    """The picture with a number in its corner."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    ImageDraw.Draw(image).text((2, 0), str(number), fill=(255, 255, 255))
    return np.asarray(image)


def in_space(name: str, clip: PhantomClip) -> np.ndarray:
    """End-diastole as it was, and both phases changed, side by side."""
    phases = [clip.ed_frame, clip.es_frame]
    frames, labels = clip.frames[phases], (clip.labels[phases] == 1).astype(np.uint8)
    changed = ULTRASOUND[name]().apply(
        SHOWN[name],
        frames=frames.astype(np.float32), labels=labels, apex=(0.0, (frames.shape[2] - 1) / 2), classes=2,
    )  # fmt: skip
    after = [outlined(*pair) for pair in zip(changed["frames"], changed["labels"], strict=True)]
    return np.concatenate([outlined(frames[0], labels[0]), *after], axis=1)


def in_time(name: str, clip: PhantomClip) -> np.ndarray:
    """From end-diastole on, every third frame as it was (above) and with other frames chosen (below)."""
    numbers = tuple(clip.ed_frame + 3 * place for place in range(FILM))
    about = {"frame_numbers": numbers, "labelled_frames": [clip.ed_frame], "native_frames": len(clip.frames)}
    chosen = ULTRASOUND[name]().apply(SHOWN[name], **about)["frame_numbers"]
    width, middle = 3 * clip.frames.shape[2] // FILM, clip.frames.shape[2] // 2
    cut = slice(middle - width // 2, middle - width // 2 + width)
    films = [
        np.concatenate(
            [numbered(outlined(clip.frames[at], clip.labels[at])[: 2 * width, cut], at) for at in film], axis=1
        )
        for film in (numbers, chosen)
    ]
    return np.concatenate([films[0], np.full_like(films[0][:4], 255), films[1]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=176, help="pixels of each frame's side")
    options = parser.parse_args()
    settings = PhantomSettings(size=(options.size, options.size), frames=40, views=("A4C",))
    (clip,) = make_patient(np.random.default_rng(3), settings).clips
    for name in SHOWN:
        picture = (in_time if name in ("cine_speed", "frame_drop") else in_space)(name, clip)
        small = Image.fromarray(picture).quantize(COLOURS, dither=Image.Dither.NONE)
        small.save(FOLDER / f"{name}.png", optimize=True)
        print(f"{name}.png: {(FOLDER / f'{name}.png').stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
