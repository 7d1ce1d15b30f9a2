"""Any-resolution images (LLaVA-NeXT): a picture is seen as a whole and in tiles, and how many tokens that makes.

Of a picture the tower sees a base tile, into which all of it is squeezed, and the tiles of the resolution that fits it
best, into which it is scaled with its aspect and padded. The visual tokens are those of the base tile, then those of
all other tiles together as one grid of the whole picture, row by row, without the rows or columns that are nothing but
padding, with a newline token behind each row. They are no rectangle, and there are more of them for a larger picture.

Only arithmetic: budgets are checked before torch or transformers are imported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vtc.backbones.regions import Region
from vtc.errors import UserError


@dataclass(frozen=True)
class Layout:
    """The visual tokens of one picture: `base`² of the base tile, then `rows` of `columns` tokens and a newline.

    Attributes:
        base: patches along a side of a tile.
        tiles: (down, across) of the resolution that was chosen, in tiles, without the base tile.
        top, left: rows and columns of the tiles' grid that are cut off as padding on each side.
        rows, columns: what is left of the grid.
        shrunk: whether the grid was made smaller by interpolation after that (LLaVA-OneVision).
    """

    base: int
    tiles: tuple[int, int]
    top: int
    left: int
    rows: int
    columns: int
    shrunk: bool = False

    @property
    def tokens(self) -> int:
        return self.base * self.base + self.rows * (self.columns + 1)


def regions(size: tuple[int, int], config: Any) -> list[Region]:
    """Where the visual tokens of a picture of `size` (height, width) stand on it: those of the base tile, into which it
    is squeezed, and those of the grid, which begins on the first row and column that aren't all padding."""
    plan = layout(size, config)
    height, width = size
    patch = config.vision_config.patch_size
    down, across = (tiles * plan.base * patch for tiles in plan.tiles)
    scale = min(across / width, down / height)
    tall, wide = min(math.ceil(height * scale), down), min(math.ceil(width * scale), across)
    y, x = (down - tall) // 2, (across - wide) // 2
    first_row, first_column = plan.top * patch, plan.left * patch
    box = (
        (first_column - x) / wide,
        (first_row - y) / tall,
        (across - first_column - x) / wide,
        (down - first_row - y) / tall,
    )
    return [Region(plan.base, plan.base), Region(plan.rows, plan.columns, box, newline=True)]


def best_resolution(size: tuple[int, int], resolutions: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Of `resolutions` (height, width) the one that keeps most of the picture's pixels, and of those the smallest."""
    height, width = size

    def fit(resolution: Sequence[int]) -> tuple[int, int]:
        scale = min(resolution[1] / width, resolution[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - resolution[0] * resolution[1]

    best = max(resolutions, key=fit)
    return best[0], best[1]


def layout(size: tuple[int, int], config: Any) -> Layout:
    """What becomes of a picture of `size` (height, width) under a model's config.

    Args:
        config: with `image_grid_pinpoints` and `vision_config`; where it has a `vision_aspect_ratio` anyres_max_K, a
            grid of more than K tiles' worth of patches is made smaller.
    """
    tile, side = config.vision_config.image_size, config.vision_config.image_size // config.vision_config.patch_size
    resolution = best_resolution(size, config.image_grid_pinpoints)
    down, across = resolution[0] // tile, resolution[1] // tile
    rows, columns, top, left = down * side, across * side, 0, 0
    if size[1] / size[0] > columns / rows:
        top = (rows - int(round(size[0] * (columns / size[1]), 7))) // 2
    else:
        left = (columns - int(round(size[1] * (rows / size[0]), 7))) // 2
    rows, columns = rows - 2 * top, columns - 2 * left
    most = str(getattr(config, "vision_aspect_ratio", "")).removeprefix("anyres_max_")
    ratio = math.sqrt(rows * columns / (int(most) * side**2)) if most.isdigit() else 1.0
    if ratio <= 1.1:
        return Layout(side, (down, across), top, left, rows, columns)
    return Layout(side, (down, across), top, left, int(rows // ratio), int(columns // ratio), shrunk=True)


def fixed(image_size: int, config: Any, name: str) -> Layout:
    """`layout` of the squares that every picture is resized to.

    Raises:
        UserError: a size that isn't a whole number of tiles.
    """
    allowed = squares(config)
    if isinstance(image_size, bool) or image_size not in allowed:
        raise UserError(
            f"backbone.image_size={image_size}: {name} cuts squares of {', '.join(map(str, allowed))} pixels into "
            "tiles; null leaves images as they are"
        )
    return layout((image_size, image_size), config)


def squares(config: Any) -> list[int]:
    """Sides of the squares that a model's tiles cover exactly, in pixels."""
    tile = config.vision_config.image_size
    return list(range(tile, max(min(r) for r in config.image_grid_pinpoints) + 1, tile))
