"""Where images stand in a grid of positions (M-RoPE), and where several tokens stand that have become one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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
    low, extent, last = _extents(tokens)
    before, shift = _moved_up(tokens, extent * last)
    at_start = tokens.per_token((low - 1)[:, None].expand_as(tokens.images[0])) - before
    return dataclasses.replace(
        tokens, position=torch.where(tokens.visual, at_start, tokens.position - before), shift=shift
    )


def as_smaller(tokens: TokenSequence, grids: Sequence[tuple[int, int] | None], most: int) -> TokenSequence:
    """Of each image the first h·w visual tokens, where a picture of that grid would have stood.

    Args:
        grids: height and width of each of the images in visual tokens from now on; None: in no grid.
        most: of an image in no grid.
    """
    _, real = tokens.images
    rank = real.cumsum(1) - 1
    if any(grid is None for grid in grids):
        return tokens.keep_visual(rank < most)
    side = torch.tensor(grids, device=rank.device)
    kept = real & (rank < side.prod(1, keepdim=True))
    if len(tokens.position) == 1:
        return tokens.keep_visual(kept)
    low, extent, last = _extents(tokens)
    before, shift = _moved_up(tokens, (extent - side.amax(1)) * last)
    width = side[:, 1:]
    height_at, width_at = (tokens.per_token(low[:, None] + place) for place in (rank // width, rank % width))
    inside = torch.stack([*tokens.position[:-2], height_at, width_at])
    position = torch.where(tokens.visual, inside, tokens.position) - before
    return dataclasses.replace(tokens, position=position, shift=shift).keep_visual(kept)


def _extents(tokens: TokenSequence) -> tuple[Tensor, Tensor, Tensor]:
    """[I] of each image in a grid of positions: its first place, how many places the text behind it goes on by, and
    whether it is the last at its place: the frames of a video share one.
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
    return low, high + 1 - low, torch.cat([first[1:], first.new_ones(1)])


def _moved_up(tokens: TokenSequence, by: Tensor) -> tuple[Tensor, Tensor]:
    """[B, L]: by how much each token moves up when what is behind each image does so `by` [I]; and the shift [B, 1] of
    what comes later.
    """
    index, real = tokens.images
    closes = torch.zeros_like(tokens.role).flatten()
    closes[index.masked_fill(~real, -1).amax(1)] = by
    closes = closes.view_as(tokens.role)
    total = closes.sum(1, keepdim=True)
    return closes.cumsum(1) - closes, -total if tokens.shift is None else tokens.shift - total


def member_positions(tokens: TokenSequence) -> Tensor:
    """[K, P, B, L]: of each token K = `tokens.several` positions in the user's sequence, those of its members.

    Of n members, in raster order, the k-th position is that of member ⌊k·n / K⌋; of fewer than K, of member k mod n. A
    token that has no members stands at its own position.
    """
    rows, width = tokens.holder.shape
    order = tokens.holder.argsort(stable=True, dim=1)
    holder, place = tokens.holder.gather(1, order), tokens.place.contiguous()
    start = torch.searchsorted(holder, place)
    count = torch.searchsorted(holder, place, right=True) - start
    k = torch.arange(tokens.several, device=place.device)[:, None, None]
    number = torch.where(count >= tokens.several, k * count // tokens.several, k % count.clamp(min=1))
    column = (start + number).clamp(max=width - 1)  # [K, B, L]
    member = order.expand(tokens.several, rows, width).gather(2, column)
    home = tokens.home[None].expand(tokens.several, -1, -1, -1)
    there = home.gather(3, member[:, None].expand(-1, len(tokens.home), -1, -1))
    return torch.where((count > 0) & (place >= 0), there, tokens.position)


def channels_of(axes: Tensor, several: int) -> Tensor:
    """[d]: by which of `several` positions each channel of a rotary embedding turns.

    The frequencies of an axis, in their order, are cut into equal runs, one for each position; an axis of fewer
    frequencies has as many positions as it has of these. The channels c and c + d / 2 turn together.

    Args:
        axes: [d], of which axis of the positions each channel is; all 0 where there is but one.
    """
    half = axes[: len(axes) // 2]
    alike = half[:, None] == half
    place, count = alike.tril(-1).sum(1), alike.sum(1)  # of a frequency among those of its axis, and how many these are
    block = place * count.clamp(max=several) // count
    return torch.cat([block, block])
