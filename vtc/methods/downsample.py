"""Image downsampling: fewer patches of a smaller image, the baseline of VTC-Bench (arXiv 2510.07143)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

from vtc.errors import UserError
from vtc.interface import ONE_TOWER, BackboneShape, FewerPatches, TowerUse, refuse_lacking

Grid = tuple[int, int]
STRETCH = 2  # how many times as wide, for its height, a picture may become


class Downsample(FewerPatches):
    """The tower sees the image at a lower resolution, and so gives fewer patches: no method at all, and hard to beat.

    With a side D times as long, D² of the tokens are left (section 2). The image, as the processor made it, is resized
    by bicubic interpolation with antialiasing. The tower gets cheaper too.

    A tower of one resolution sees a smaller square, its own positions interpolated to the smaller grid (CLIP, SigLIP,
    InternViT), or looked up at the same fractions of the side (Idefics3, SmolVLM, as they do with small pictures).
    Qwen-VL's tower takes any grid, as the paper has it; the LLM's positions are those of the smaller picture. A visual
    token stays what the family makes it of: a square of 2×2 patches is one, in the smaller picture as in the large one.

    Budgets: the squares up to the backbone's own grid. Where images keep their size, any number: each image becomes the
    grid of exactly so many tokens whose aspect is nearest to its own. One of few divisors has none that is near: an
    image that would be stretched more than twofold is refused. (Qwen's own resizing keeps the aspect, and gets near a
    number of tokens only: 7×9 of 4:3 for 64, where this takes 8×8.) Every frame of a video is an image.

    Args:
        tokens: default: half the side, a quarter of the tokens; of images of any size: all.
    """

    name = "downsample"
    about = "Image downsampling: the vision tower sees a smaller image, and so gives fewer patches (arXiv 2510.07143)."
    reference = "test_downsample.py::test_equals_a_tower_run_on_a_smaller_image"

    @property
    def free(self) -> bool:
        """Whether images keep their size."""
        return self.shape.vision.any_size and self.shape.visual_tokens is None

    @property
    def side(self) -> int:
        """Visual tokens along one side of the backbone's grid."""
        shape, vision = self.shape, self.shape.vision
        refuse_lacking(self.name, (ONE_TOWER,), shape)
        if shape.grid is None or shape.grid[0] != shape.grid[1]:
            has = f"has {shape.grid}" if vision.tile_tokens is None else "cuts an image into tiles"
            raise UserError(
                f"method={self.name}: it needs a square grid of visual tokens, one picture in the tower; "
                f"{shape.name} {has}"
            )
        if shape.grid[0] * vision.merge != vision.grid_side:
            raise UserError(
                f"method={self.name}: a smaller image must be a smaller grid; {shape.name} has "
                f"{shape.visual_tokens} visual tokens of {vision.grid_side**2} patches"
            )
        return shape.grid[0]

    def tower(self) -> TowerUse | None:
        if self.tokens is None or (not self.free and self.tokens >= self.side**2):
            return None
        if self.shape.vision.any_size:
            return TowerUse(grid=self.shown)
        return TowerUse(image_size=self.pixels(round(self.tokens**0.5)))

    def pixels(self, side: int) -> int:
        """Of a square picture of so many tokens a side."""
        return side * self.shape.vision.merge * self.shape.vision.patch_size

    def shown(self, grid: Grid) -> Grid:
        """What the tower sees in the place of an image of this grid of visual tokens: not more of them."""
        fits = self.tokens is None or grid[0] * grid[1] <= self.tokens
        return grid if fits else nearest(self.tokens or 0, grid)

    def smaller(self, grid: Grid | None) -> Grid | None:
        return None if grid is None else self.shown(grid)

    def default_tokens(self) -> int | None:
        return None if self.free else max(1, self.side // 2) ** 2

    def offers(self) -> Sequence[int]:
        return () if self.free else [side * side for side in range(1, self.side + 1)]

    def leaves(self) -> BackboneShape:
        shape = self.shape
        if self.free or self.tokens is None or self.tokens == shape.visual_tokens:
            return super().leaves()
        side = round(self.tokens**0.5)  # To a method behind this one, the image is a smaller one.
        vision = replace(shape.vision, image_size=self.pixels(side))
        if vision.tokens is not None:
            vision = replace(vision, tokens=(side * vision.merge) ** 2 + vision.cls)
        if vision.tile_tokens is not None:
            vision = replace(vision, tile_tokens=self.tokens)
        return replace(shape, visual_tokens=self.tokens, grid=(side, side), vision=vision)


@functools.cache
def nearest(tokens: int, grid: Grid) -> Grid:
    """(h, w) with h·w = tokens, the nearest to the aspect of a larger grid; of two as near, the more even one.

    Raises:
        UserError: it would be stretched more than `STRETCH` times.
    """
    found = min(
        ((h, tokens // h) for h in range(1, tokens + 1) if tokens % h == 0),
        key=lambda cells: (stretch(cells, grid), abs(cells[0] - cells[1])),
    )
    if stretch(found, grid) > STRETCH:
        raise UserError(
            f"tokens={tokens}: of its grids {found[0]}×{found[1]} is the nearest to the aspect of an image of "
            f"{grid[0]}×{grid[1]} visual tokens, which downsample would stretch {stretch(found, grid):.3g} times; "
            "take a number with more divisors"
        )
    return found


def stretch(cells: Grid, grid: Grid) -> float:
    """By how much the aspects of two grids differ, 1 or more."""
    one, other = cells[0] * grid[1], cells[1] * grid[0]
    return max(one, other) / min(one, other)
