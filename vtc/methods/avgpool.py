"""Average pooling of the visual tokens, over the raster sequence (1-D) or over the image (2-D)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from vtc.allowed import Allowed
from vtc.errors import UserError
from vtc.interface import GRID, BackboneShape, Context, TokenMerger, TokenSequence, layer_option, option, refuse_lacking

DIMS = Allowed("1 (raster order), 2 (over the grid)", lambda value: value in (1, 2))


def raster_groups(real: Tensor, count: int | Tensor) -> Tensor:
    """1-D groups in raster order: token r of N goes to group floor(r·count / N), so sizes differ by one at most.

    Args:
        real: [I, N] bool, the images' tokens.
        count: groups per image, or [I, 1]; an image with fewer tokens keeps each of them.

    Returns:
        [I, N] group of each token. Where N is a multiple of `count` this is pooling with stride N / count.
    """
    rank = real.cumsum(1) - 1
    length = real.sum(1, keepdim=True)
    count = torch.as_tensor(count, device=real.device).clamp(max=length)
    return torch.div(rank * count, length, rounding_mode="floor")


@functools.cache
def pooled_grid(tokens: int, grid: tuple[int, int]) -> tuple[int, int] | None:
    """(h, w) with h·w = tokens whose cells tile the grid evenly, nearest to its aspect; None if there is none."""
    height, width = grid
    fits = [(h, tokens // h) for h in range(1, height + 1) if tokens % h == 0 and height % h == 0]
    fits = [(h, w) for h, w in fits if w <= width and width % w == 0]
    return min(fits, key=lambda c: abs(c[0] * width - c[1] * height), default=None)


class AveragePooling(TokenMerger):
    """Each group of neighbouring visual tokens becomes their mean.

    Args:
        tokens: groups per image. 1-D meets any number; 2-D those whose cells tile the grid evenly (on 12×12: 4, 16,
            36, 144 as squares, and rectangles such as 6 = 2×3).
    """

    name = "avgpool"
    about = "Average pooling of neighbouring visual tokens, 1-D or over the grid, at any layer."
    reference = "test_pooling.py::test_pooling_is_the_mean_of_its_groups"
    incomparable = "a baseline without code of authors"
    layer: int = layer_option(0, "before this decoder layer; 0: before the LLM")
    dims: int = option(2, "1: runs in raster order; 2: blocks of the grid", allowed=DIMS)

    def prepare(self) -> None:
        if self.dims == 2 and self.tokens is not None:
            self.require_grid()

    def require_grid(self) -> None:
        refuse_lacking(self.name, (GRID,), self.shape, instead="use dims=1")

    def assign(self, tokens: TokenSequence, context: Context) -> tuple[Tensor, None]:
        _, real = tokens.images
        if self.dims == 1:
            return raster_groups(real, self.tokens or real.shape[1]), None
        rank = real.cumsum(1) - 1
        groups = torch.empty_like(rank)
        for grid in {*context.grids}:
            of_grid = torch.tensor([g == grid for g in context.grids], device=rank.device)
            groups[of_grid] = self._cells(rank[of_grid], grid)
        return groups, None

    def _cells(self, rank: Tensor, grid: tuple[int, int] | None) -> Tensor:
        if self.tokens is None:
            return rank
        cells = pooled_grid(self.tokens, grid) if grid else None
        if grid is None or cells is None:
            raise UserError(
                f"tokens={self.tokens}: no h×w cells tile an image of {grid or 'unknown'} visual tokens; use dims=1"
            )
        row, column = rank // grid[1], rank % grid[1]
        return (row * cells[0] // grid[0]) * cells[1] + column * cells[1] // grid[1]

    def offers(self) -> Sequence[int]:
        if self.dims == 1:
            return super().offers()
        self.require_grid()
        return [t for t in super().offers() if self.shape.grid and pooled_grid(t, self.shape.grid)]

    def leaves(self) -> BackboneShape:
        left = super().leaves()
        if self.dims == 1 or left is self.shape or self.tokens is None or self.shape.grid is None:
            return left
        return dataclasses.replace(left, grid=pooled_grid(self.tokens, self.shape.grid), places=self.shape.places)
