"""Frames of a video file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LOST = 0.05  # of the frames that a file announces: more are not there in a file that is broken


def frames(path: str | Path, count: int) -> list[Image.Image]:
    """`count` frames at equal distances from the first to the last, as Video-LLaVA takes them; of a video with fewer,
    some twice. Each says when it is (`info["seconds"]`), for the families that tell their model.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no video, or one that breaks off.
    """
    import av

    if not Path(path).is_file():
        raise FileNotFoundError(f"no such video: {path}")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"no video in {path}")
            total = _announced(container)
            indices = np.linspace(0, total - 1, count).astype(int).tolist()
            images: dict[int, Image.Image] = {}
            last, at = None, -1
            container.streams.video[0].thread_type = "AUTO"
            for at, frame in enumerate(container.decode(video=0)):
                last = frame
                if at in indices:
                    images[at] = _dated(frame)
                if at == indices[-1]:
                    break
    except av.FFmpegError as error:
        raise ValueError(f"{path} can't be decoded ({error})") from error
    if last is None or at < indices[-1] - LOST * total:
        raise ValueError(f"{path} breaks off: {at + 1} of {total} frames can be decoded")
    end = _dated(last)  # stands for a frame that was announced after the last there is
    return [images.get(index, end) for index in indices]


def _dated(frame: Any) -> Image.Image:
    image = frame.to_image()
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
