"""Where an image's visual tokens are drawn on its picture, from what a run or a result's samples hold of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of width and height

DIMMED = 0.75  # of the place of a token that is gone, how much of it is white
TINTED = 0.45  # of the place of a token that is part of a merged one, how much of it is the group's colour
# Okabe and Ito's colours, which people with any colour vision tell apart; groups take them in turn.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (0, 114, 178), (213, 94, 0), (240, 228, 66))


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


def pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """A box in pixels of a picture of `size` (width, height), right and bottom exclusive; None for an empty one.

    Neighbouring boxes share an edge and no pixel.
    """
    width, height = size
    left, top, right, bottom = (
        round(share * side) for share, side in zip(box, (width, height, width, height), strict=True)
    )
    return (left, top, right, bottom) if right > left and bottom > top else None


def levels(regions: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """The visual tokens of an image that are drawn on one copy of its picture, by their number.

    A family that cuts a picture into tiles shows its tower the whole picture in small too: the tokens of that one stand
    where those of the tiles do, and are a level of their own.
    """
    out: list[list[int]] = []
    boxes: list[list[Sequence[float]]] = []
    start = 0
    for region in regions:
        count = region["rows"] * (region["columns"] + bool(region["newline"]))
        box = tuple(map(float, region["box"]))
        for level, others in zip(out, boxes, strict=True):
            if not any(_overlap(box, other) for other in others):
                level += range(start, start + count)
                others.append(box)
                break
        else:
            out.append([*range(start, start + count)])
            boxes.append([box])
        start += count
    return out


def _overlap(a: Sequence[float], b: Sequence[float], least: float = 1e-6) -> bool:
    return min(a[2], b[2]) - max(a[0], b[0]) > least and min(a[3], b[3]) - max(a[1], b[1]) > least


def spread(regions: Sequence[Mapping[str, Any]], values: Sequence[float], size: tuple[int, int]) -> list[np.ndarray]:
    """A number of each visual token on the pixels of its square, [height, width] for each of the `levels`; NaN
    elsewhere, and where the number is.

    Args:
        size: (width, height) in pixels.
    """
    import numpy as np

    boxes, out = [*token_boxes(regions)], []
    for level in levels(regions):
        canvas = np.full((size[1], size[0]), np.nan)
        for token in level:
            box = boxes[token]
            if box is not None and (place := pixels(box, size)) is not None:
                left, top, right, bottom = place
                canvas[top:bottom, left:right] = values[token]
        out.append(canvas)
    return out


def faded(picture: Image, regions: Sequence[Mapping[str, Any]], holders: Sequence[int]) -> list[Image]:
    """The picture, once for each of the `levels`, with what became of its visual tokens.

    Clear is the place of a token that was kept as it is, faded that of one that is gone, tinted that of one that merged
    with others: those of one colour that are told apart by a line are one group. White is what no token stands for,
    where the tower sees nothing of the picture.

    Args:
        picture: RGB, of any size: boxes are shares of it.
        holders: of each visual token the one that holds it in the end, -1 for none (`vtc.engine.Report.holders`).
    """
    import numpy as np
    from PIL import Image as pictures

    held = groups(holders)
    merged = {holder: members for holder, members in held.items() if len(members) > 1}
    number = {holder: at for at, holder in enumerate(merged)}
    colour = _colours(merged, regions)
    of_group = [float("nan") if h not in number else float(number[h]) for h in holders]
    there = [float("nan") if h < 0 else 1.0 for h in holders]
    pixels_of, out = np.asarray(picture.convert("RGB"), dtype=float), []
    every = spread(regions, [0.0] * len(holders), picture.size)
    for seen, left, group in zip(
        every, spread(regions, there, picture.size), spread(regions, of_group, picture.size), strict=True
    ):
        drawn = pixels_of.copy()
        gone = np.isnan(left)
        drawn[gone] = drawn[gone] * (1 - DIMMED) + 255 * DIMMED
        drawn[np.isnan(seen)] = 255
        for holder, at in number.items():
            place = group == at
            drawn[place] = drawn[place] * (1 - TINTED) + np.array(COLOURS[colour[holder]]) * TINTED
        drawn[_edges(np.where(np.isnan(group), -1, group))] = 0
        out.append(pictures.fromarray(drawn.round().astype(np.uint8)))
    return out


def _colours(merged: Mapping[int, Sequence[int]], regions: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Of each group the number of a colour, another than its neighbours' where the colours suffice."""
    boxes = [*token_boxes(regions)]
    corners: dict[tuple[float, float], set[int]] = {}
    for holder, members in merged.items():
        for token in members:
            box = boxes[token] if token < len(boxes) else None
            if box is not None:
                for corner in ((0, 1), (2, 1), (0, 3), (2, 3)):
                    corners.setdefault((round(box[corner[0]], 6), round(box[corner[1]], 6)), set()).add(holder)
    near: dict[int, set[int]] = {holder: set() for holder in merged}
    for together in corners.values():
        for holder in together:
            near[holder] |= together - {holder}
    out: dict[int, int] = {}
    for at, holder in enumerate(merged):
        taken = {out[other] for other in near[holder] if other in out}
        free = [colour for colour in range(len(COLOURS)) if colour not in taken]
        out[holder] = free[at % len(free)] if free else at % len(COLOURS)
    return out


def _edges(group: np.ndarray) -> np.ndarray:
    """[H, W] bool: the pixels of a group beside those of another."""
    import numpy as np

    edge = np.zeros(group.shape, dtype=bool)
    edge[:, 1:] |= group[:, 1:] != group[:, :-1]
    edge[1:] |= group[1:] != group[:-1]
    return edge & (group >= 0)


def beside(drawn: Sequence[Image], gap: int = 4) -> Image:
    """Pictures of one height side by side."""
    from PIL import Image as pictures

    if len(drawn) == 1:
        return drawn[0]
    width = sum(one.width for one in drawn) + gap * (len(drawn) - 1)
    out, left = pictures.new("RGB", (width, max(one.height for one in drawn)), "white"), 0
    for one in drawn:
        out.paste(one, (left, 0))
        left += one.width + gap
    return out
