"""Average pooling of the visual tokens, over the raster sequence (1-D) or over the image (2-D)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.errors import UserError
from vtc.interface import Context, TokenMerger, TokenSequence, resolve_layer, two_level

if TYPE_CHECKING:
    from vtc.interface import BackboneShape


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
        layer: before which decoder layer (papers' count); 0 = before the LLM.
        dims: 1 = runs of the raster sequence (LLaVolta), 2 = cells of the image.
    """

    name = "avgpool"

    def __init__(
        self, tokens: int | None, shape: BackboneShape, layer: int = 0, dims: int = 2, layer_scale: str = "auto"
    ) -> None:
        super().__init__(tokens, shape, resolve_layer(layer, shape.depth, layer_scale))
        self.dims = _checked(dims)
        if dims == 2 and tokens is not None:
            self.offers(shape, dims=dims)  # says whether there is a grid

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

    @classmethod
    def offers(cls, shape: BackboneShape, dims: int = 2, **options: Any) -> Sequence[int]:
        every = range(1, (shape.visual_tokens or 0) + 1)
        if _checked(dims) == 1:
            return every
        require_grid(cls.name, shape, "use dims=1")
        return [t for t in every if shape.grid and pooled_grid(t, shape.grid)]

    @classmethod
    def layer_tokens(
        cls, tokens: int | None, shape: BackboneShape, layer: int = 0, layer_scale: str = "auto", **options: Any
    ) -> list[int]:
        return two_level(tokens, shape, resolve_layer(layer, shape.depth, layer_scale))

    @classmethod
    def leaves(cls, tokens: int | None, shape: BackboneShape, dims: int = 2, **options: Any) -> BackboneShape:
        left = super().leaves(tokens, shape)
        if dims == 1 or left is shape or tokens is None or shape.grid is None:
            return left
        return dataclasses.replace(left, grid=pooled_grid(tokens, shape.grid), places=shape.places)


def require_grid(method: str, shape: BackboneShape, instead: str = "") -> None:
    """Raises `UserError` where the visual tokens of an image are in no rectangular grid, or no longer in one.

    Args:
        instead: what the user may do about it.
    """
    if shape.grid is None and (shape.visual_tokens is not None or shape.vision.tile_tokens):
        raise UserError(
            f"method={method}: it needs a rectangular grid of visual tokens; {shape.name} has none"
            f"{f', {instead}' if instead else ''}"
        )


def _checked(dims: int) -> int:
    if dims not in (1, 2):
        raise UserError(f"method.dims={dims}: allowed: 1 (raster order), 2 (over the grid)")
    return dims
