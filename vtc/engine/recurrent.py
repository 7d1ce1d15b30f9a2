"""Layers with linear attention: a state that each token changes, and no keys that a mask could hide (Qwen3.5's gated
delta rule, arXiv 2412.06464).

What such a layer gives for a token depends on the real tokens before it, one behind the other. Padding in front of the
first changes nothing: its hidden states are zeroed, and a state of zeros stays one. Padding between two tokens would:
the state decays there, and the convolution in front of it forgets. So rows are laid out anew where that is needed:
packed questions each in a row of its own behind the prefix, and, in passes that a method runs itself, real tokens at
the right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclass(frozen=True)
class Rows:
    """The tokens of B rows in other rows, padded on the left.

    Attributes:
        source: [R, N] which of the B·L tokens stands in each place.
        mask: [R, N] bool, the real ones.
        back: [B, L] which of the R·N places has what becomes of each token; -1: none, it is padding.
    """

    source: Tensor
    mask: Tensor
    back: Tensor

    @classmethod
    def of(cls, member: Tensor) -> Rows:
        """Each of Q selections of a row's tokens in a row of its own; the first in which a token is says what becomes
        of it.

        Args:
            member: [B, Q, L] bool.
        """
        rows, several, length = member.shape
        count = int(member.sum(2).max())
        order = member.to(torch.uint8).argsort(dim=2, stable=True)[..., length - count :]
        mask = member.gather(2, order)
        start = length * torch.arange(rows, device=member.device)[:, None, None]
        place = torch.arange(rows * several * count, device=member.device).view(rows, several, count)
        nowhere = rows * several * count
        back = torch.full((rows, several, length), nowhere, device=member.device)
        back = back.scatter(2, order, place.masked_fill(~mask, nowhere)).amin(1)
        return cls((order + start).flatten(0, 1), mask.flatten(0, 1), back.masked_fill(back == nowhere, -1))

    def there(self, hidden: Tensor) -> Tensor:
        """[B, L, D] → [R, N, D]."""
        source = self.source.to(hidden.device)
        return hidden.flatten(0, 1).index_select(0, source.flatten()).view(*source.shape, -1)

    def again(self, moved: Tensor, padding: Tensor) -> Tensor:
        """[R, N, D] → [B, L, D]; `padding` [B, L, D] stands where there is no token."""
        back = self.back.to(moved.device)
        out = moved.flatten(0, 1).index_select(0, back.clamp(min=0).flatten()).view(*back.shape, -1)
        return torch.where((back >= 0)[..., None], out, padding)

    def run(self, layer: Callable[..., Tensor], hidden: Tensor) -> Tensor:
        """What `layer(hidden [R, N, D], attention_mask [R, N])` makes of the tokens, [B, L, D]."""
        return self.again(layer(self.there(hidden), attention_mask=self.mask.to(hidden.device)), hidden)


def questions(block: Tensor, mask: Tensor) -> Rows:
    """Packed questions each behind the prefix, as if it stood there alone.

    Args:
        block, mask: [B, L] of the tokens, see `TokenSequence`.
    """
    number = torch.arange(1, max(1, int(block.max())) + 1, device=block.device)[:, None]
    return Rows.of(((block[:, None] == 0) | (block[:, None] == number)) & mask[:, None])


def attending(cache: Cache, layers: range) -> int | None:
    """The first of these layers whose cache holds tokens; None: they all hold states alone."""
    held = (i for i in layers if i >= len(cache.layers) or isinstance(cache.layers[i], CacheLayerMixin))
    return next(held, None)


def change_rows(layer: object, change: Callable[[Tensor], Tensor]) -> None:
    """Takes other rows of a layer's states."""
    for states in (layer.conv_states, layer.recurrent_states):  # type: ignore[attr-defined]
        for key, state in states.items():
            states[key] = None if state is None else change(state)
