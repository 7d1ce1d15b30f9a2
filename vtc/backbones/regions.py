"""Where on a picture its visual tokens stand: a grid over the part of it that the tower sees, or several.

Only arithmetic: what is drawn of a run needs neither weights nor pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Region:
    """The next rows × columns visual tokens of an image, in raster order, stand on a grid that fills `box`.

    Attributes:
        box: left, top, right and bottom as shares of the picture's width and height; beyond 0 and 1 where the tower
            sees padding.
        newline: whether a token that stands for no patch follows each row.
    """

    rows: int
    columns: int
    box: Box = WHOLE
    newline: bool = False

    @property
    def tokens(self) -> int:
        return self.rows * (self.columns + self.newline)


def seen(size: tuple[int, int], processor: Any) -> Box:
    """The part of a picture of `size` (height, width) that an image processor hands to the tower."""
    height, width = size
    if getattr(processor, "do_pad", False) and getattr(processor, "do_center_crop", False):
        side = max(height, width)  # LLaVA's own: a square around the picture
        x, y = (side - width) / 2 / width, (side - height) / 2 / height
        return (-x, -y, 1 + x, 1 + y)
    if not getattr(processor, "do_center_crop", False):
        return WHOLE
    resized, crop = _sides(processor.size), _sides(processor.crop_size)
    shortest = resized.get("shortest_edge") if getattr(processor, "do_resize", True) else min(height, width)
    if shortest is None:
        return WHOLE
    scale = shortest / min(height, width)
    shares = [crop[key] / (scale * side) for key, side in (("height", height), ("width", width))]
    y, x = ((1 - share) / 2 for share in shares)
    return (x, y, 1 - x, 1 - y)


def _sides(size: Any) -> dict[str, Any]:
    """A processor's size; a crop of one number is a square."""
    if isinstance(size, int):
        return {"shortest_edge": size, "height": size, "width": size}
    known = dict(size) if isinstance(size, Mapping) else {k: getattr(size, k, None) for k in ("height", "width")}
    side = known.get("shortest_edge")
    return {"height": side, "width": side} | known


def tiled(size: tuple[int, int], tiles: int, rows: int, columns: int, whole: bool) -> list[Region]:
    """A picture that is squeezed into a canvas of `tiles` tiles, each with a grid of rows × columns tokens.

    Of that many tiles the arrangement is the one whose aspect is nearest to the picture's.

    Args:
        whole: whether the whole picture in small follows them.
    """
    aspect = size[1] / size[0]
    pairs = [(down, tiles // down) for down in range(1, tiles + 1) if tiles % down == 0]
    down, across = min(pairs, key=lambda pair: abs(pair[1] / pair[0] - aspect))
    out = [
        Region(rows, columns, (x / across, y / down, (x + 1) / across, (y + 1) / down))
        for y in range(down)
        for x in range(across)
    ]
    return out + [Region(rows, columns)] * whole
