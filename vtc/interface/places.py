"""Where images stand in a grid of positions (M-RoPE), and where several tokens stand that have become one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vtc.interface.tokens import TokenSequence


def closed(tokens: TokenSequence) -> TokenSequence:
    """Images take up no places of the grid (M-RoPE): the tokens of each stand just before its first place, and what
    is behind it moves up to there.

    The frames of a video share one place: transformers lets them begin at the same one, as text goes on behind all.
    """
    index, real = tokens.images
    row, _ = tokens.frames
    at = tokens.position.flatten(1)[:, index]  # [3, I, N]
    low = at.masked_fill(~real, torch.iinfo(at.dtype).max).amin((0, 2))
    high = at[-2:].masked_fill(~real, -1).amax((0, 2))
    first = torch.ones_like(row, dtype=torch.bool)
    first[1:] = (row[1:] != row[:-1]) | (low[1:] != low[:-1])
    place = first.cumsum(0) - 1
    high = high.new_zeros(len(row)).scatter_reduce(0, place, high, "amax")[place]
    last = torch.cat([first[1:], first.new_ones(1)])
    closes = torch.zeros_like(tokens.role).flatten()
    closes[index.masked_fill(~real, -1).amax(1)] = (high + 1 - low) * last
    closes = closes.view_as(tokens.role)
    before = closes.cumsum(1) - closes
    at_start = tokens.per_token((low - 1)[:, None].expand_as(index)) - before
    position = torch.where(tokens.visual, at_start, tokens.position - before)
    total = closes.sum(1, keepdim=True)
    return dataclasses.replace(
        tokens, position=position, shift=-total if tokens.shift is None else tokens.shift - total
    )
