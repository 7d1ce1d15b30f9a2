"""The one way to open pictures and frames: what the model is shown is what a person would see.

Upright (EXIF orientation is followed), in 8-bit RGB, with what is transparent laid on white. Pillow's own
`convert("RGB")` leaves a phone's portrait lying on its side, clips 16-bit and floating-point pictures to white or
black, and turns black strokes on a transparent ground into black on black.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from vtc.identity import hash_bytes

LARGEST = 120_000_000  # pixels of a picture; a file of 21 kB can hold more, and would take gigabytes once decoded
IN_FLIGHT = 240_000_000  # pixels of all pictures that are decoded at a time: 0.7 GB of RGB
WHITE = (255, 255, 255, 255)


class _Meanwhile:
    """A setting of Pillow's, which it has for the whole process, while at least one thread is inside."""

    def __init__(self, owner: Any, name: str, value: Any) -> None:
        self.owner, self.name, self.value = owner, name, value
        self._lock, self._inside, self._before = threading.Lock(), 0, None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = getattr(self.owner, self.name)
            self._inside += 1
            setattr(self.owner, self.name, self.value)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                setattr(self.owner, self.name, self._before)


_WHOLE = _Meanwhile(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
_OF_ANY_SIZE = _Meanwhile(Image, "MAX_IMAGE_PIXELS", None)  # our own limit stands, and says what is allowed

Source = Any  # a path, bytes, {"bytes", "path"} as data sets have it, or a picture that is open


def open_picture(source: Source) -> Image.Image:
    """A picture as it is shown to a model: upright, RGB, whole.

    | mode of the file | becomes |
    |---|---|
    | 8 bits a channel (1, L, P, RGB, CMYK, YCbCr, LAB, HSV) | Pillow's own conversion |
    | alpha, or a transparent colour (LA, PA, RGBA, tRNS) | laid on white |
    | 16 bits (I;16) | v / 257, rounded: 65,535 is white |
    | 32-bit integers (I) | as 8 bits up to 255, as 16 bits up to 65,535 |
    | floating point (F) | 0 to 1 as a share of white, else 0 to 255 |

    Of a moving picture it is the first frame.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no picture, one that breaks off, one with more than `LARGEST` pixels, or numbers without a known
            scale (negative, not finite, larger than the scales above).
    """
    picture = opened(source)
    try:
        with whole():
            picture.load()
            return to_rgb(ImageOps.exif_transpose(picture))
    except (OSError, SyntaxError, EOFError) as error:  # what Pillow's decoders raise
        raise ValueError(f"can't be decoded ({error})") from error


def hash_picture(picture: Image.Image) -> str:
    """Hash of what is shown: size and pixels in RGB, whatever the file is called and however it is packed."""
    shown = to_rgb(picture)
    return hash_bytes([f"{shown.width}x{shown.height}", shown.tobytes()])[:16]


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """A picture that breaks off is an error: other packages tell Pillow, for the whole process, to fill the rest with
    grey."""
    with _WHOLE:
        yield


def opened(source: Source) -> Image.Image:
    """A picture whose header has been read, and whose pixels have not.

    Raises:
        FileNotFoundError, ValueError: as `open_picture`.
    """
    picture = source if isinstance(source, Image.Image) else _open(source)
    if picture.width * picture.height > LARGEST:
        raise ValueError(
            f"{picture.width} x {picture.height} pixels; allowed: {LARGEST // 10**6} million, since each takes memory"
        )
    return picture


def _open(source: Source) -> Image.Image:
    if isinstance(source, Mapping):
        content = source.get("bytes")
        source = content if content is not None else source.get("path")
    if isinstance(source, (str, Path)) and not Path(source).is_file():
        raise FileNotFoundError(f"no such picture: {source}")
    try:
        with _OF_ANY_SIZE:
            return Image.open(io.BytesIO(source) if isinstance(source, (bytes, bytearray)) else source)
    except (OSError, SyntaxError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"no picture ({error})") from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """A decoded picture of any mode as RGB, see `open_picture`.

    Raises:
        ValueError: numbers without a known scale.
    """
    mode = picture.mode
    if mode == "RGB" and "transparency" not in picture.info:
        return picture
    if mode == "I" or mode == "F" or mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(np.asarray(picture), mode)).convert("RGB")
    if "transparency" in picture.info or mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        picture = picture.convert("RGBA")  # RGBa and La hold colours that are multiplied by their alpha already
        paper = Image.new("RGBA", picture.size, WHITE)
        return Image.alpha_composite(paper, picture).convert("RGB")
    return picture.convert("RGB")


def _eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """[H, W] of whole or floating-point numbers → [H, W] of 0 to 255."""
    if not values.size:
        return values.astype(np.uint8)
    if not np.isfinite(values).all():
        raise ValueError(f"a picture of mode {mode} with numbers that aren't finite")
    least, most = float(values.min()), float(values.max())
    if mode.startswith("I;16"):
        white = 65_535.0
    elif mode == "I":
        white = 255.0 if most <= 255 else 65_535.0
    else:
        white = 1.0 if most <= 1 else 255.0
    if least < 0 or most > white:
        raise ValueError(
            f"a picture of mode {mode} with numbers from {least:g} to {most:g}: which is white isn't known"
        )
    return np.rint(values.astype(np.float64) * (255.0 / white)).astype(np.uint8)
