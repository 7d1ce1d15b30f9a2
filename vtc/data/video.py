"""Frames of a video file, as a player shows them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LOST = 0.05  # of the frames that a file announces: more are not there in a file that is broken


def frames(path: str | Path, count: int) -> list[Image.Image]:
    """`count` frames at equal distances from the first to the last, as Video-LLaVA takes them; of a video with fewer,
    some twice. Each is upright, as the file says how it was held, and says when it is (`info["seconds"]`), for the
    families that tell their model.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no video, or one that breaks off.
    """
    with _container(path) as container:
        total = _announced(container)
        indices = np.linspace(0, total - 1, count).astype(int).tolist()
        chosen: dict[int, Image.Image] = {}
        last, at = None, -1
        container.streams.video[0].thread_type = "AUTO"
        for at, frame in enumerate(container.decode(video=0)):
            last = frame
            if at in indices:
                chosen[at] = upright(frame)
            if at == indices[-1]:
                break
        if last is None or at < indices[-1] - LOST * total:
            raise ValueError(f"{path} breaks off: {at + 1} of {total} frames can be decoded")
        end = upright(last)  # stands for a frame that was announced after the last there is
    return [chosen.get(index, end) for index in indices]


def pixels(path: str | Path, count: int) -> int:
    """Of `count` frames of a video, as its header says.

    Raises:
        FileNotFoundError, ValueError: as `frames`.
    """
    with _container(path) as container:
        stream = container.streams.video[0]
        return count * stream.width * stream.height


@contextlib.contextmanager
def _container(path: str | Path) -> Iterator[Any]:
    """An open file with a video in it; what goes wrong in decoding it is a ValueError."""
    import av

    if not Path(path).is_file():
        raise FileNotFoundError(f"no such video: {path}")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"no video in {path}")
            yield container
    except av.FFmpegError as error:
        raise ValueError(f"{path} can't be decoded ({error})") from error


def upright(frame: Any) -> Image.Image:
    """A decoded frame as a player shows it: phones store what they film in portrait lying on its side, and say so."""
    image = frame.to_image()
    if quarters := round(frame.rotation / 90) % 4:  # degrees against the clock, as Pillow's
        turns = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
        image = image.transpose(turns[quarters - 1])
    if frame.time is not None:
        image.info["seconds"] = float(frame.time)
    return image


def _announced(container: Any) -> int:
    """How many frames a file says it has; where its header doesn't, by its packets, which are read and not decoded."""
    stream = container.streams.video[0]
    total = int(stream.frames)
    if not total:
        total = sum(packet.size > 0 for packet in container.demux(stream))
        container.seek(0, stream=stream)
    if not total:
        raise ValueError("no frames in it")
    return total
