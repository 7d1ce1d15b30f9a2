"""Windows of s×s patches over the tower's grid, each of which becomes one token: what TokenPacker and QueCC share."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import torch
from torch import Tensor, nn

from vtc.errors import UserError
from vtc.interface import BackboneShape, Tower, TowerResampler, TowerUse, option, projected_layer
from vtc.interface.needs import ONE_TOWER, WHOLE_IMAGES, refuse_lacking

PAPER_STATES = (12, 16, 22, 23)  # hidden states of CLIP ViT-L, of which LLaVA-1.5 projects the 23rd


class WindowAttention(nn.Module):
    """Each query attends to the fine features of its own window alone, through MLPs to keys and values."""

    def __init__(self, inputs: int, width: int, heads: int) -> None:
        super().__init__()
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


def fine_layers(layers: Sequence[int] | None, shape: BackboneShape) -> list[int]:
    """The tower's layers (0…) whose outputs are the fine features, in the user's order; None: the paper's."""
    depth, last = shape.vision.depth, projected_layer(shape) + 1
    if layers is None:
        return sorted({max(1, round(state * last / PAPER_STATES[-1])) - 1 for state in PAPER_STATES})
    wrong = [n for n in layers if isinstance(n, bool) or not isinstance(n, int) or not -depth <= n < depth]
    if wrong or not layers:
        raise UserError(f"method.tower_layers={list(layers)}: this tower's layers are {-depth} to {depth - 1}")
    return list(dict.fromkeys(n % depth for n in layers))


class WindowResampler(TowerResampler):
    """One token for each window of the grid, made of several layers of the tower. Override `forward`.

    Attributes:
        grid: (height, width) in patches.
        stride: patches along one side of a window.
    """

    needs_training = True
    fixed_budget = True
    trained_options = ("heads", "tower_layers")
    heads: int = option(8, "of the attention")
    fine: list[int] = option(
        None,
        "layers of the tower (0…, or from the end: -1) that are the fine features; null: the paper's",
        name="tower_layers",
        resolve=fine_layers,
    )

    def prepare(self) -> None:
        strides, width = self._strides(), self.shape.vision.width
        if self.tokens not in strides:
            offered = ", ".join(map(str, strides))
            raise UserError(f"tokens={self.tokens}: {self.name} on {self.shape.name} offers {offered}")
        if self.heads < 1 or width % self.heads:
            raise UserError(
                f"method.heads={self.heads}: method={self.name} splits the tower's width of {width} into them"
            )
        assert self.shape.grid is not None
        self.grid, self.stride = self.shape.grid, strides[self.tokens]

    def tower(self) -> TowerUse:
        return TowerUse(projects=False, levels=frozenset(self.fine))

    def default_tokens(self) -> int | None:
        """Windows of 2×2 patches, or the next larger ones that there are."""
        return self.offers()[-2:][0]

    def offers(self) -> Sequence[int]:
        """The numbers of s×s windows into which the grid can be divided."""
        return list(self._strides())

    def _strides(self) -> dict[int, int]:
        """Budgets and the strides that leave them, coarsest first."""
        shape = self.shape
        if shape.grid is None:
            raise UserError(f"method={self.name}: it divides a grid of patches into windows, and {shape.name} has none")
        refuse_lacking(self.name, (ONE_TOWER, WHOLE_IMAGES), shape)
        h, w = shape.grid
        return {h * w // s**2: s for s in range(gcd(h, w), 0, -1) if gcd(h, w) % s == 0}
