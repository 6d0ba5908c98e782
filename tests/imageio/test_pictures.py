"""PNG and JPEG, alone and in folders."""

from __future__ import annotations

import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from echoplan.errors import EchoPlanError
from echoplan.imageio import probe_clip, read_clip, read_mask, write_clip, write_mask


def test_a_folder_and_back(tmp_path, clip):
    write_clip(tmp_path / "clip", clip)
    assert sorted(item.name for item in (tmp_path / "clip").iterdir())[0] == "frame_0000.png"
    again = read_clip(tmp_path / "clip")
    assert np.array_equal(again.frames, clip.frames)
    assert again.spacing_mm is None and again.frame_time_ms is None
    assert probe_clip(tmp_path / "clip").shape == clip.frames.shape
    write_clip(tmp_path / "clip", replace(clip, frames=clip.frames[:2]))  # replaced as a whole
    assert len(read_clip(tmp_path / "clip")) == 2
    assert [item.name for item in tmp_path.iterdir()] == ["clip"]


def test_natural_order(tmp_path):
    for value, name in enumerate(["f2.png", "f10.png", "f100.PNG"]):
        Image.fromarray(np.full((4, 6), value, np.uint8)).save(tmp_path / name)
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    (tmp_path / ".f0.png").write_bytes(b"x")
    assert read_clip(tmp_path).frames[:, 0, 0].tolist() == [0, 1, 2]


def test_a_single_picture(tmp_path, clip):
    one = replace(clip, frames=clip.frames[:1].astype(np.uint16) * 200)
    write_clip(tmp_path / "a.png", one)
    again = read_clip(tmp_path / "a.png")
    assert np.array_equal(again.frames, one.frames) and again.frames.dtype == np.uint16
    assert probe_clip(tmp_path / "a.png").shape == (1, 24, 32)


def test_colour_and_palette(tmp_path, clip):
    grey = clip.frames[0]
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "equal.png")
    Image.fromarray(np.dstack([grey, grey, grey, np.zeros_like(grey)])).save(tmp_path / "alpha.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    for name in ("equal.png", "alpha.png", "palette.png"):
        assert np.array_equal(read_clip(tmp_path / name).frames[0], grey)
    Image.fromarray(np.full((4, 6, 3), (0, 100, 0), np.uint8)).save(tmp_path / "green.png")
    assert (read_clip(tmp_path / "green.png").frames == 59).all()


def test_jpeg(tmp_path):
    Image.fromarray(np.full((16, 16), 90, np.uint8)).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_clip(tmp_path / "a.jpg").frames.astype(int) - 90).max() <= 1
    with pytest.raises(EchoPlanError, match="JPEG cannot hold labels"):
        read_mask(tmp_path / "a.jpg")


def test_masks(tmp_path, clip, mask):
    write_mask(tmp_path / "m", mask, like=clip)
    assert np.array_equal(read_mask(tmp_path / "m", frames_shape=mask.shape), mask)
    palette = Image.fromarray(mask[1]).convert("L")
    palette = palette.point(lambda value: value)
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0] + [7] * 759)  # red and green stand for labels 1 and 2
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_mask(tmp_path / "palette.png")[0], mask[1])
    Image.fromarray(np.stack([mask[1]] * 3, -1)).save(tmp_path / "equal.png")
    assert np.array_equal(read_mask(tmp_path / "equal.png")[0], mask[1])
    Image.fromarray(np.full((4, 6, 3), (0, 100, 0), np.uint8)).save(tmp_path / "green.png")
    with pytest.raises(EchoPlanError, match="coloured"):
        read_mask(tmp_path / "green.png")


def test_broken_folders(tmp_path, clip):
    (tmp_path / "empty").mkdir()
    with pytest.raises(EchoPlanError, match="holds no PNG"):
        read_clip(tmp_path / "empty")
    write_clip(tmp_path / "clip", clip)
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "clip" / "z.png")
    with pytest.raises(EchoPlanError, match=r"\(4, 6\).*\(24, 32\)") as error:
        read_clip(tmp_path / "clip")
    assert error.value.file.endswith("z.png")
    content = (tmp_path / "clip" / "frame_0002.png").read_bytes()
    (tmp_path / "clip" / "frame_0002.png").write_bytes(content[:200])
    with pytest.raises(EchoPlanError, match=r"truncated or damaged.*frame_0002"):
        read_clip(tmp_path / "clip")
    (tmp_path / "clip" / "frame_0000.png").write_bytes(b"nothing")
    with pytest.raises(EchoPlanError, match=r"damaged.*frame_0000"):
        probe_clip(tmp_path / "clip")


def test_what_png_cannot_hold(tmp_path, clip):
    with pytest.raises(EchoPlanError, match="one frame, this clip has 5"):
        write_clip(tmp_path / "a.png", clip)
    with pytest.raises(EchoPlanError, match="float32"):
        write_clip(tmp_path / "clip", replace(clip, frames=clip.frames.astype(np.float32)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(EchoPlanError, match="more than pictures"):
        write_clip(tmp_path / "mine", clip)
    (tmp_path / "plain").touch()
    with pytest.raises(EchoPlanError, match="not a folder"):
        write_clip(tmp_path / "plain", clip)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["mine", "plain"]


def test_every_flipped_bit_of_a_png_is_noticed(tmp_path, clip):
    """PIL looks at no checksum of the pixels."""
    one = replace(clip, frames=clip.frames[:1])
    write_clip(tmp_path / "a.png", one)
    content = (tmp_path / "a.png").read_bytes()
    for place in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[place] ^= 4
        (tmp_path / "a.png").write_bytes(flipped)
        with pytest.raises(EchoPlanError):
            read_clip(tmp_path / "a.png")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_exif_orientations(tmp_path, name, orientation):
    upright = np.zeros((24, 40), np.uint8)
    upright[:12, :20], upright[:6, :10] = 200, 90
    stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
              6: np.rot90(upright), 7: np.rot90(upright, 2).T, 8: np.rot90(upright, -1)}[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {"quality": 98} if name == "a.jpg" else {}
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / name, exif=exif, **options)
    if name == "a.tif" and orientation > 4:
        with pytest.raises(EchoPlanError, match="lies on its side"):
            read_clip(tmp_path / name)
        return
    clip = read_clip(tmp_path / name)
    assert clip.frames.shape == probe_clip(tmp_path / name).shape == (1, 24, 40)
    assert np.abs(clip.frames[0].astype(int) - upright).max() < 12


def test_a_damaged_exif_header_damages_no_picture(tmp_path):
    grey = Image.fromarray(np.full((16, 16), 90, np.uint8))
    grey.save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"Doe^Jane" * 4)
    assert read_clip(tmp_path / "a.jpg").frames.shape == (1, 16, 16)


@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_tiff_pages_are_frames(tmp_path, clip, mask, kind, compression):
    frames = clip.frames.astype(kind) * (1 if kind == "u1" else 200)
    first, *others = (Image.fromarray(frame) for frame in frames)
    first.save(tmp_path / "a.tif", save_all=True, append_images=others, compression=compression)
    again = read_clip(tmp_path / "a.tif")
    assert np.array_equal(again.frames, frames) and again.frames.dtype == frames.dtype
    assert probe_clip(tmp_path / "a.tif").shape == frames.shape
    first, *others = (Image.fromarray(frame) for frame in mask)
    first.save(tmp_path / "m.tif", save_all=True, append_images=others, compression=compression)
    assert np.array_equal(read_mask(tmp_path / "m.tif", frames_shape=mask.shape), mask)


def test_gif_and_bmp(tmp_path, clip):
    first, *others = (Image.fromarray(frame) for frame in clip.frames)
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=40, optimize=False)
    again = read_clip(tmp_path / "a.gif")
    assert np.array_equal(again.frames, clip.frames) and again.frame_time_ms is None
    assert probe_clip(tmp_path / "a.gif").shape == clip.frames.shape
    with pytest.raises(EchoPlanError, match="GIF files hold no labels"):
        read_mask(tmp_path / "a.gif")
    (tmp_path / "f").mkdir()
    for number, frame in enumerate(clip.frames):
        Image.fromarray(frame).save(tmp_path / "f" / f"{number}.bmp")
    assert np.array_equal(read_clip(tmp_path / "f").frames, clip.frames)
    assert np.array_equal(read_clip(tmp_path / "f" / "0.bmp").frames, clip.frames[:1])


def test_pictures_that_are_no_frames_cost_no_memory(tmp_path):
    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    size = (50_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    pixels = zlib.compress(bytes(2**24))
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    tracemalloc.start()
    for use in (read_clip, probe_clip):
        with pytest.raises(EchoPlanError, match="frames of 50000 x 50000 pixels: at most 33,554,432 pixels a frame"):
            use(tmp_path / "a.png")
    large = Image.new("1", (5000, 7000))
    Image.new("1", (16, 16)).save(tmp_path / "a.tif", save_all=True, append_images=[large], compression="group4")
    with pytest.raises(EchoPlanError, match="frames of 7000 x 5000 pixels"):
        read_clip(tmp_path / "a.tif")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_pictures_of_eight_and_of_sixteen_bits(tmp_path):
    Image.fromarray(np.full((4, 6), 200, np.uint8)).save(tmp_path / "0.png")
    Image.fromarray(np.full((4, 6), 60_000, np.uint16)).save(tmp_path / "1.png")
    assert read_clip(tmp_path).frames[:, 0, 0].tolist() == [200, 60_000]
