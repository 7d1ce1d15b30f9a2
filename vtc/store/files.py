"""The pictures of a folder: which there are, what is in them, what is wrong with them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vtc.errors import UserError
from vtc.identity import hash_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL = 160  # pixels of its longer side
QUALITY = 80  # of its JPEG


@dataclass(frozen=True)
class Broken:
    """A file that is no picture for us, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Picture:
    """A picture that is open: its file's path, hash and size, and its pixels."""

    path: str
    hash: str
    size: int
    image: Image


def kinds() -> set[str]:
    """The ends of names of files that Pillow reads, such as `.png`."""
    from PIL import Image

    Image.init()
    return {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def root_of(folder: str) -> Path:
    """The folder that is indexed.

    Raises:
        UserError: there is none.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"images={folder}: {'a file' if root.exists() else 'no such folder'}; a folder is needed")
    return root.resolve()


def pictures_in(root: Path) -> tuple[list[str], list[Broken]]:
    """The paths of all pictures in a folder and the folders in it, in order, and the links that aren't followed: to
    what is outside. A link to a picture inside is that picture, which has its own path.

    Raises:
        UserError: there are none.
    """
    ends, paths, outside = kinds(), [], []
    for place, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files) + [f for f in folders if os.path.islink(os.path.join(place, f))]:
            path = os.path.join(place, name)
            if os.path.islink(path):
                target = Path(os.path.realpath(path))
                if root not in (target, *target.parents) and (name in folders or _ends(name) in ends):
                    outside.append(Broken(path, "a link out of the folder"))
            elif _ends(name) in ends:
                paths.append(path)
    if not paths and not outside:
        raise UserError(f"images={root.name}: no pictures in it, nor in the folders in it")
    return paths, outside


def _ends(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def content_of(path: str) -> tuple[bytes, str]:
    """The bytes of a file, and their hash.

    Raises:
        ValueError: it can't be read, or is empty.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"can't be read ({error.strerror})") from None
    if not content:
        raise ValueError("0 bytes")
    return content, hash_bytes([content])


def opened(path: str, content: bytes, name: str) -> Picture:
    """A picture of a file's bytes, whose hash is `name`.

    Raises:
        ValueError: see `vtc.data.pictures.open_picture`.
    """
    from vtc.data.pictures import open_picture

    return Picture(path, name, len(content), open_picture(content))


def thumbnail(image: Image) -> bytes:
    """A picture in small, as a JPEG."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def parts(items: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
