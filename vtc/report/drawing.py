"""Where kept tokens are drawn on a picture, from what a result's samples hold of each image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of width and height


def token_boxes(regions: Sequence[Mapping[str, Any]]) -> Iterator[Box | None]:
    """The square of each visual token of an image, in the image's order; None for one that stands for no patch.

    Args:
        regions: as `samples.parquet` has them (`vtc.backbones.regions.Region`). Parts of a square beyond the picture,
            where the tower saw padding, are cut off.
    """
    for region in regions:
        left, top, right, bottom = (float(side) for side in region["box"])
        wide, tall = (right - left) / region["columns"], (bottom - top) / region["rows"]
        for row in range(region["rows"]):
            for column in range(region["columns"]):
                x, y = left + column * wide, top + row * tall
                yield (max(0.0, x), max(0.0, y), min(1.0, x + wide), min(1.0, y + tall))
            if region["newline"]:
                yield None


def groups(holders: Sequence[int]) -> dict[int, list[int]]:
    """Of an image's visual tokens those that are left → the tokens that each holds: itself, or what merged into it."""
    held: dict[int, list[int]] = {}
    for token, holder in enumerate(holders):
        if holder >= 0:
            held.setdefault(int(holder), []).append(token)
    return held
