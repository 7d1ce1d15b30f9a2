"""Windows of s×s patches over the tower's grid, each of which becomes one token: what TokenPacker and QueCC share."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vtc.errors import UserError
from vtc.interface import Tower, projected_layer, require_patches

if TYPE_CHECKING:
    from vtc.interface import BackboneShape

PAPER_STATES = (12, 16, 22, 23)  # hidden states of CLIP ViT-L, of which LLaVA-1.5 projects the 23rd


class WindowAttention(nn.Module):
    """Each query attends to the fine features of its own window alone, through MLPs to keys and values."""

    def __init__(self, method: str, inputs: int, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise UserError(f"method.heads={heads}: method={method} splits the tower's width of {width} into them")
        self.key = nn.Sequential(*mlp(inputs, width), nn.LayerNorm(width, eps=1e-6))
        self.value = nn.Sequential(*mlp(inputs, width), nn.LayerNorm(width, eps=1e-6))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, query: Tensor, fine: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
        """Queries [I, M, C] and fine features [I, N, L·C] → [I, M, C]."""
        keys, values = (windows(f(fine), grid, stride).flatten(0, 1) for f in (self.key, self.value))
        out, _ = self.attention(query.reshape(-1, 1, query.shape[-1]), keys, values, need_weights=False)
        return out.view_as(query)


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Two layers with GELU between them."""
    return nn.Sequential(nn.Linear(inputs, outputs), nn.GELU(), nn.Linear(outputs, outputs))


def windows(x: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
    """[I, N, C] in raster order of the grid → [I, M, s², C]: s×s windows in raster order, and patches in each."""
    s = stride
    parts = x.unflatten(1, (grid[0] // s, s, grid[1] // s, s))  # [I, h/s, s, w/s, s, C]
    return parts.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def side_by_side(tower: Tower, layers: Sequence[int]) -> Tensor:
    """[I, N, L·C]: the patches of L layers, concatenated."""
    return torch.cat([tower.patch_level(layer) for layer in layers], dim=-1)


def fine_layers(given: Sequence[int] | None, shape: BackboneShape) -> list[int]:
    """The tower's layers (0…) whose outputs are the fine features, in the order given; None: the paper's."""
    depth, last = shape.vision.depth, projected_layer(shape) + 1
    if given is None:
        return sorted({max(1, round(state * last / PAPER_STATES[-1])) - 1 for state in PAPER_STATES})
    wrong = [n for n in given if isinstance(n, bool) or not isinstance(n, int) or not -depth <= n < depth]
    if wrong or not given:
        raise UserError(f"method.tower_layers={list(given)}: this tower's layers are {-depth} to {depth - 1}")
    return list(dict.fromkeys(n % depth for n in given))


def _strides(method: str, shape: BackboneShape) -> dict[int, int]:
    """Budgets and the strides that leave them, coarsest first."""
    if shape.grid is None:
        raise UserError(f"method={method}: it divides a grid of patches into windows, and {shape.name} has none")
    require_patches(method, shape)
    h, w = shape.grid
    return {h * w // s**2: s for s in range(gcd(h, w), 0, -1) if gcd(h, w) % s == 0}


def window_budgets(method: str, shape: BackboneShape) -> list[int]:
    """The numbers of s×s windows into which the grid can be divided."""
    return list(_strides(method, shape))


def default_windows(method: str, shape: BackboneShape) -> int:
    """Windows of 2×2 patches, or the next larger ones that there are."""
    return window_budgets(method, shape)[-2:][0]


def windows_of(method: str, tokens: int, shape: BackboneShape) -> tuple[tuple[int, int], int]:
    """The grid and the stride that leaves `tokens` windows.

    Raises:
        UserError: there is no such stride.
    """
    strides = _strides(method, shape)
    if tokens not in strides or shape.grid is None:
        offered = ", ".join(map(str, strides))
        raise UserError(f"tokens={tokens}: {method} on {shape.name} offers {offered}")
    return shape.grid, strides[tokens]
