"""Where tokens are in a row: their columns and positions, masks that are written out pair by pair, and the way back
from the tokens that are left to the layout that the user sees.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from vtc.engine.views import View
from vtc.interface import TEXT, VISUAL, TokenSequence


def to_external(hidden: Tensor, tokens: TokenSequence, last: Tensor, length: int) -> Tensor:
    """Puts last hidden states [B, L, D] into the external layout [B, length, D], by what they PREDICT.

    A language model's state at slot t predicts token t + 1. After a reduction the state that predicts a text token is
    that of the token now before it (the last register, say), so it goes to the slot before that text token, whose own
    visual token may be gone. For the first token of a block it is the last of the shared prefix: the token before it
    is of another question. Slots that predict nothing and whose token is gone are 0.

    Args:
        tokens: what `hidden` belongs to.
        last: [B] slot of each row's last token; it predicts the next one to come.
    """
    rows, count, width = hidden.shape
    dev = hidden.device
    column = torch.arange(count, device=dev).expand(rows, -1)
    source = torch.full((rows, length + 1), -1, device=dev)  # slot `length` takes what goes nowhere
    source.scatter_(1, torch.where(tokens.mask & (tokens.origin >= 0), tokens.origin, length), column)

    before = column - 1
    starts = torch.zeros_like(tokens.mask)
    starts[:, 1:] = (tokens.block[:, 1:] != tokens.block[:, :-1]) & (tokens.block[:, 1:] > 0)
    prefix = column.masked_fill((tokens.block != 0) | ~tokens.mask, -1).amax(1, keepdim=True)
    before = torch.where(starts, prefix, before)
    has = (before >= 0) & tokens.mask.gather(1, before.clamp(min=0)) & tokens.mask
    predicted = has & (tokens.role == TEXT) & (tokens.origin > 0)
    source.scatter_(1, torch.where(predicted, tokens.origin - 1, length), before)
    final = column.masked_fill(~tokens.mask, -1).amax(1, keepdim=True)
    source.scatter_(1, last[:, None], final)

    source = source[:, :length]
    empty = source < 0
    flat = source.clamp(min=0) + count * torch.arange(rows, device=dev)[:, None]
    out = hidden.flatten(0, 1).index_select(0, flat.flatten()).view(rows, length, width)
    return out.masked_fill(empty[..., None], 0)


def pair_mask(
    tokens: TokenSequence,
    past: Tensor,
    bottleneck: bool = False,
    size: Tensor | None = None,
    view: View | None = None,
) -> Tensor:
    """Additive mask [B, 1, L, P + L] in the type of `tokens.hidden`: causal AND (key.block == 0 or key.block ==
    query.block); behind a bottleneck AND (key isn't visual or key.image == query.image); log size of the key is added.

    Every token sees itself, so that no row of padding is empty (a softmax over nothing is NaN).

    Args:
        past: [B, P] bool, the real ones of the cached tokens, none of which is hidden.
        size: [B, P + L] of the keys, see `TokenSequence`; None: each counts once.
        view: what takes the place of "causal", of cached tokens too; None: nothing does.
    """
    mask, block, image, dtype = tokens.mask, tokens.block, tokens.image, tokens.hidden.dtype
    length = mask.shape[1]
    allowed = (block[:, None, :] == 0) | (block[:, None, :] == block[:, :, None])
    if bottleneck:
        allowed &= (tokens.role != VISUAL)[:, None, :] | (image[:, None, :] == image[:, :, None])
    allowed, cached = allowed & mask[:, None, :], past.to(mask.device)[:, None].expand(-1, length, -1)
    if view is None:
        allowed.tril_()
    else:
        reach = view.every().to(mask.device)
        allowed &= reach[..., reach.shape[2] - length :]
        cached = cached & reach[..., : reach.shape[2] - length]
    allowed |= torch.eye(length, dtype=torch.bool, device=mask.device)
    allowed = torch.cat([cached, allowed], 2)
    logits = torch.zeros(allowed.shape, dtype=dtype, device=mask.device)
    if size is not None:
        logits += size.to(mask.device).log()[:, None]
    return logits.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def last_column(mask: Tensor) -> Tensor:
    """The last True of each row, [..., L] → [...]."""
    return torch.arange(mask.shape[-1], device=mask.device).expand_as(mask).masked_fill(~mask, 0).amax(-1)


def between_tiles(tokens: TokenSequence) -> Tensor:
    """[B, L] bool: text between the tiles of one image, which is the image's and no prompt's."""
    image = torch.where(tokens.mask, tokens.image, -1)
    many = image.shape[1]
    before = image.cummax(1).values
    after = torch.where(image < 0, many, image).flip(1).cummin(1).values.flip(1)
    return (image < 0) & (before == after)


def common_tail(tokens: TokenSequence) -> Tensor:
    """[]: how many tokens behind the last image every row has in the same columns; 0 with padding on the right, where
    rows end in different columns.
    """
    behind = tokens.mask.shape[1] - 1 - last_column(tokens.visual).max()
    return torch.where(tokens.mask[:, -1].all(), behind, 0)


def same_layout(a: TokenSequence, b: TokenSequence) -> bool:
    """Whether masks, positions and sizes are the same tensors: what was made for one of the two holds for the other."""
    return a.mask is b.mask and a.position is b.position and a.size is b.size


def change_shift(tokens: TokenSequence, old: Tensor | None, new: Tensor | None) -> TokenSequence:
    """The same tokens, which enter a segment where earlier turns left another shift [B, 1] than in the one before."""
    if old is new:
        return tokens
    nothing = torch.zeros_like(tokens.position[0, :, :1])
    delta = (nothing if new is None else new) - (nothing if old is None else old)
    shift, home_shift = (delta if s is None else s + delta for s in (tokens.shift, tokens.home_shift))
    position, home = tokens.position + delta, tokens.home + delta
    return dataclasses.replace(tokens, position=position, shift=shift, home=home, home_shift=home_shift)
