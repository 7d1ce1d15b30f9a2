"""What a request shows the model: the text, the pictures and the frames behind one of lmms-eval's documents.

Headers are read first, so that what a batch would take is known before its pictures are decoded (`room`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from PIL import Image

from vtc.data import video
from vtc.data.pictures import Source, hash_picture, open_picture, opened

Room = Callable[[int], None]  # makes room for that many pixels, before they are decoded


@dataclass
class Prompt:
    """One request, decoded: a question and what it is about.

    Attributes:
        index: of the request among those that are answered together.
        videos: the frames of each.
        options: how the answer is generated.
    """

    index: int
    text: str
    images: list[Image.Image]
    options: dict[str, Any]
    videos: list[list[Image.Image]] = field(default_factory=list)

    @property
    def shown(self) -> list[Image.Image]:
        """Images and frames: what visual tokens are counted for, and memory."""
        return [*self.images, *(frame for frames in self.videos for frame in frames)]

    @property
    def pixels(self) -> int:
        return sum(map(_pixels, self.shown))

    @cached_property
    def hashes(self) -> list[str]:
        """Of each image (`vtc.data.pictures.hash_picture`)."""
        return [hash_picture(image) for image in self.images]


class Documents:
    """The rows of a data set, their pictures opened by vtc and not by `datasets`, which knows no transparency.

    Args:
        rows: as the task has them. Columns that the task itself left undecoded stay as they are.
    """

    def __init__(self, rows: Any) -> None:
        self.names = [name for name, feature in (getattr(rows, "features", None) or {}).items() if _decoded(feature)]
        self.rows = rows.remove_columns(self.names) if self.names else rows
        # In Arrow's format a picture is what is stored of it: {bytes, path}.
        self.pictures = rows.select_columns(self.names).with_format("arrow") if self.names else None

    def read(self, number: int, room: Room) -> Mapping[str, Any]:
        """A row, its pictures upright and in RGB.

        Raises:
            FileNotFoundError, ValueError: a picture that isn't there or can't be decoded.
        """
        row = self.rows[number]
        if self.pictures is None:
            return row
        stored = self.pictures[number].to_pylist()[0]
        values = [value if isinstance(value, list) else [value] for value in stored.values()]
        room(sum(_pixels(opened(source)) for value in values for source in value if source is not None))
        return row | {name: _shown(value) for name, value in stored.items()}


def _shown(value: Any) -> Any:
    """What is stored of a picture, of several or of none → what is shown."""
    if isinstance(value, list):
        return [_shown(source) for source in value]
    return None if value is None else open_picture(value)


def _pixels(picture: Image.Image) -> int:
    return math.prod(picture.size)


def _decoded(feature: Any) -> bool:
    """Whether `datasets` would decode a column: a picture, or a list of them."""
    import datasets

    inner = getattr(feature, "feature", feature)
    return isinstance(inner, datasets.Image) and inner.decode


def decoded(
    images: Sequence[Source], videos: Sequence[str], frames: int, room: Room
) -> tuple[list[Image.Image], list[list[Image.Image]]]:
    """Pictures and the frames of videos, upright and in RGB.

    Args:
        frames: of a video.

    Raises:
        FileNotFoundError, ValueError: one that isn't there or can't be decoded.
    """
    headers = [opened(image) for image in images]
    room(sum(map(_pixels, headers)) + sum(video.pixels(path, frames) for path in videos))
    return [open_picture(header) for header in headers], [video.frames(path, frames) for path in videos]
