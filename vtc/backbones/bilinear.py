"""Which patches a visual token is a mean of, where a grid of them is made smaller by bilinear interpolation."""

from __future__ import annotations

import torch
from torch import Tensor

Sources = tuple[Tensor, Tensor]  # of M visual tokens: patches [M, 4], and their weights [M, 4], the greatest first


def single(patches: Tensor) -> Sources:
    """Visual tokens that are one of `patches` [M] each."""
    weights = torch.zeros(len(patches), 4, device=patches.device)
    weights[:, 0] = 1
    return patches[:, None].expand(-1, 4), weights


def shrunk(grid: Tensor, size: tuple[int, int]) -> Sources:
    """What `torch.nn.functional.interpolate(…, size, mode="bilinear")` makes tokens of in a grid of patches [H, W],
    row by row.
    """
    (top, bottom, low), (left, right, near) = (
        _axis(before, after, grid.device) for before, after in zip(grid.shape, size, strict=True)
    )
    rows, columns = torch.stack([top, bottom], 1), torch.stack([left, right], 1)  # [h, 2], [w, 2]
    down, across = torch.stack([1 - low, low], 1), torch.stack([1 - near, near], 1)
    patches = grid[rows[:, None, :, None], columns[None, :, None, :]].reshape(-1, 4)
    weights = (down[:, None, :, None] * across[None, :, None, :]).reshape(-1, 4)
    order = weights.argsort(dim=1, descending=True, stable=True)
    return patches.gather(1, order), weights.gather(1, order)


def _axis(before: int, after: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Along one side, of each of `after` places: the two among `before` that it lies between, the weight of the
    second.
    """
    place = ((torch.arange(after, device=device) + 0.5) * (before / after) - 0.5).clamp(min=0)
    first = place.long()
    return first, (first + 1).clamp(max=before - 1), place - first
