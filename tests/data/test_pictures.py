"""Pictures of every mode have the pixels that a person would see."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from vtc.data import pictures
from vtc.data.pictures import open_picture


def stored(picture: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def grey(values: list, dtype: type) -> Image.Image:
    return Image.fromarray(np.asarray([values], dtype=dtype))


def palette(*colours: tuple[int, int, int]) -> Image.Image:
    picture = Image.new("P", (len(colours), 1))
    picture.putpalette([channel for colour in colours for channel in colour])
    picture.putdata(range(len(colours)))
    return picture


def row(mode: str, *values) -> Image.Image:
    picture = Image.new(mode, (len(values), 1))
    picture.putdata(values)
    return picture


# mode or kind → (the file, the pixels that are right, left to right)
MODES = {
    "1": (stored(row("1", 0, 255), "PNG"), [(0, 0, 0), (255, 255, 255)]),
    "L": (stored(row("L", 0, 128, 255), "PNG"), [(0,) * 3, (128,) * 3, (255,) * 3]),
    "LA": (stored(row("LA", (0, 255), (0, 0), (0, 128)), "PNG"), [(0,) * 3, (255,) * 3, (127,) * 3]),
    "P": (stored(palette((10, 20, 30), (200, 0, 0)), "PNG"), [(10, 20, 30), (200, 0, 0)]),
    "P, transparent": (stored(palette((0, 0, 0), (0, 0, 0)), "PNG", transparency=1), [(0,) * 3, (255,) * 3]),
    "P, alpha table": (
        stored(palette((0, 0, 0), (0, 0, 0)), "PNG", transparency=bytes([255, 128])),
        [(0,) * 3, (127,) * 3],
    ),
    "GIF, transparent": (stored(palette((9, 9, 9), (0, 0, 0)), "GIF", transparency=1), [(9,) * 3, (255,) * 3]),
    "RGB": (stored(row("RGB", (1, 2, 3), (250, 251, 252)), "PNG"), [(1, 2, 3), (250, 251, 252)]),
    "RGB, transparent": (
        stored(row("RGB", (0, 0, 0), (7, 7, 7)), "PNG", transparency=(0, 0, 0)),
        [(255,) * 3, (7,) * 3],
    ),
    "RGBA": (
        stored(row("RGBA", (0, 0, 0, 255), (0, 0, 0, 0), (255, 0, 0, 128)), "PNG"),
        [(0,) * 3, (255,) * 3, (255, 127, 127)],
    ),
    "CMYK": (stored(row("CMYK", (0, 0, 0, 0), (0, 0, 0, 255), (0, 255, 255, 0)), "TIFF"), [
        (255,) * 3, (0,) * 3, (255, 0, 0)]),
    "I;16": (stored(grey([0, 257, 32_896, 65_535], np.uint16), "PNG"), [(0,) * 3, (1,) * 3, (128,) * 3, (255,) * 3]),
    "I;16, TIFF": (stored(grey([0, 32_896, 65_535], np.uint16), "TIFF"), [(0,) * 3, (128,) * 3, (255,) * 3]),
    "I, 8 bits": (stored(grey([0, 128, 255], np.int32), "TIFF"), [(0,) * 3, (128,) * 3, (255,) * 3]),
    "I, 16 bits": (stored(grey([0, 32_896, 65_535], np.int32), "TIFF"), [(0,) * 3, (128,) * 3, (255,) * 3]),
    "F, shares": (stored(grey([0.0, 0.5, 1.0], np.float32), "TIFF"), [(0,) * 3, (128,) * 3, (255,) * 3]),
    "F, 8 bits": (stored(grey([0.0, 128.0, 255.0], np.float32), "TIFF"), [(0,) * 3, (128,) * 3, (255,) * 3]),
    "one colour, F": (stored(grey([0.0, 0.0], np.float32), "TIFF"), [(0,) * 3, (0,) * 3]),
}  # fmt: skip


@pytest.mark.parametrize("name", MODES)
def test_pixels(name: str) -> None:
    content, right = MODES[name]
    shown = open_picture(content)
    assert shown.mode == "RGB" and shown.size == (len(right), 1)
    assert np.abs(np.asarray(shown)[0].astype(int) - right).max() <= 1


@pytest.mark.parametrize("mode", ["YCbCr", "LAB", "HSV"])
def test_other_colour_spaces_are_those_of_pillow(mode: str) -> None:
    picture = Image.new("RGB", (4, 4), (200, 40, 90))
    if mode == "LAB":
        picture = Image.new("LAB", (4, 4), (128, 128, 128))
        content = stored(picture, "TIFF")
    else:
        picture = picture.convert(mode)
        content = picture
    assert np.array_equal(np.asarray(open_picture(content)), np.asarray(picture.convert("RGB")))


def test_sixteen_bit_colour() -> None:
    """A PNG of 16 bits a channel, written by hand since Pillow writes none."""
    line = struct.pack(">6H", 65_535, 32_896, 0, 0, 257, 65_535)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    content += chunk(b"IDAT", zlib.compress(b"\0" + line)) + chunk(b"IEND", b"")
    assert np.abs(np.asarray(open_picture(content))[0].astype(int) - [(255, 128, 0), (0, 1, 255)]).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_every_orientation_is_upright(orientation: int, form: str) -> None:
    upright = np.zeros((6, 4, 3), np.uint8)
    upright[:3] = (200, 0, 0)
    upright[:3, :2] = (0, 0, 200)  # no symmetry hides a mistake
    upright = np.kron(upright, np.ones((8, 8, 1), np.uint8))
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Image.Transpose that lays it down so
    lying = Image.fromarray(upright) if undo is None else Image.fromarray(upright).transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if form in ("JPEG", "WEBP") else {}
    shown = np.asarray(open_picture(stored(lying, form, exif=exif, **options))).astype(int)
    assert shown.shape == upright.shape
    assert np.abs(shown - upright).mean() < 6


def test_sources(tmp_path: Path) -> None:
    content = stored(Image.new("RGB", (3, 2), (9, 8, 7)), "PNG")
    file = tmp_path / "a.png"
    file.write_bytes(content)
    with Image.open(file) as picture:
        sources = [content, file, str(file), {"bytes": content, "path": None}, {"bytes": None, "path": file}, picture]
        for source in sources:
            assert open_picture(source).getpixel((2, 1)) == (9, 8, 7)


def test_the_first_frame_of_a_moving_picture() -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    content = stored(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_picture(content).getpixel((0, 0)) == (255, 0, 0)


REFUSED = {
    "empty": (b"", "no picture"),
    "text": (b"hello", "no picture"),
    "cut": (stored(Image.effect_noise((64, 64), 90), "PNG")[:900], "can't be decoded"),
    "negative": (stored(grey([-1, 5], np.int32), "TIFF"), "which is white"),
    "32 bits": (stored(grey([0, 70_000], np.int32), "TIFF"), "which is white"),
    "large": (stored(grey([0.0, 300.0], np.float32), "TIFF"), "which is white"),
    "not a number": (stored(grey([0.0, float("nan")], np.float32), "TIFF"), "aren't finite"),
    "null": (None, "no picture"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    content, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        open_picture(content)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such picture"):
        open_picture(tmp_path / "none.png")


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    content = stored(Image.new("1", (13_300, 13_300)), "PNG")
    assert len(content) < 30_000
    with pytest.raises(ValueError, match="13300 x 13300 pixels; allowed: 120 million"):
        open_picture(content)
    assert pictures.IN_FLIGHT >= pictures.LARGEST


def test_what_other_packages_allow_pillow_is_not_allowed_here(monkeypatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ValueError, match="can't be decoded"):
        open_picture(REFUSED["cut"][0])
    assert ImageFile.LOAD_TRUNCATED_IMAGES
