"""A DynamicCache whose layers hold different numbers of tokens, and which still counts as the user does.

`generate()` knows the external layout only: the original input_ids, their mask and positions. The ledger beside the
keys and values says how each segment of layers differs from it, and goes wherever the cache goes: beams, further turns,
cropping.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from vtc.errors import UserError

# What models, layers and masks call the cache among their arguments: transformers 5.24 gave it a new name.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


def cache_among(arguments: Mapping[str, Any]) -> Any:
    """The cache of a call with these keyword arguments, under either name; None where there is none."""
    given = arguments.get(CACHE)
    return arguments.get("past_key_values") if given is None else given


@dataclass
class Segment:
    """Layers `start`… up to the next segment, which all hold the same tokens.

    Attributes:
        mask: [B, cached] bool, the real ones of the cached tokens; None: all are.
        shift: [B, 1] added to the external positions of tokens to come; None: nothing.
    """

    start: int
    mask: Tensor | None = None
    shift: Tensor | None = None


@dataclass
class Ledger:
    """`seen` external tokens are in the cache, the last `tail` of which have one entry of their own in every layer."""

    seen: int
    tail: int
    segments: list[Segment] = field(default_factory=list)


def refuse(cache: Cache) -> None:
    """Raises `UserError` for a cache whose layers can't hold different numbers of tokens."""
    if type(cache) not in (DynamicCache, CompressedCache) or any(cache.is_sliding):
        raise UserError(
            f"cache: compression drops tokens layer by layer, which a {type(cache).__name__} can't hold; "
            "allowed: a DynamicCache with full attention (generate's default)"
        )


class CompressedCache(DynamicCache):
    """A DynamicCache with a ledger. Without a layer number its length is the external one, which `generate` goes by."""

    ledger: Ledger

    @classmethod
    def adopt(cls, cache: Cache, starts: list[int], mask: Tensor | None) -> CompressedCache:
        """Turns `cache` itself (others hold references to it) into a compressed one.

        Args:
            starts: first layer of each segment.
            mask: [B, cached] of the tokens that it already holds, uncompressed; None: none, or all real.
        """
        seen = DynamicCache.get_seq_length(cache)
        cache.__class__ = cls
        adopted = cast(CompressedCache, cache)
        adopted.ledger = Ledger(seen, seen, [Segment(s, mask) for s in starts])
        return adopted

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        return self.ledger.seen if layer_idx is None else super().get_seq_length(layer_idx)

    def crop(self, tokens_to_remove: int) -> None:
        n = abs(tokens_to_remove)
        if tokens_to_remove < 0 and n > self.ledger.tail:
            raise ValueError(
                f"can't take {n} tokens off a compressed cache: only its last {self.ledger.tail} are whole"
            )
        super().crop(tokens_to_remove)
        self.ledger.seen -= n
        self.ledger.tail -= n
        for s in self.ledger.segments:
            s.mask = None if s.mask is None else s.mask[:, : s.mask.shape[1] - n]

    def keep(self, layers: range, past: int, order: Tensor) -> None:
        """Of the tokens behind the first `past` ones only those at `order` [B, n], in these layers."""
        for layer in (self.layers[i] for i in layers):
            for name in ("keys", "values"):
                whole = getattr(layer, name)  # [B, H, past + L, d]
                index = order.to(whole.device)[:, None, :, None].expand(-1, whole.shape[1], -1, whole.shape[3])
                setattr(layer, name, torch.cat([whole[:, :, :past], whole[:, :, past:].gather(2, index)], 2))

    def reset(self) -> None:
        super().reset()
        self.ledger = Ledger(0, 0, [Segment(s.start) for s in self.ledger.segments])

    def reorder_cache(self, beam_idx: Any) -> None:
        super().reorder_cache(beam_idx)
        self._rows(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._rows(lambda t: t.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._rows(lambda t: t[indices.to(t.device)])

    def _rows(self, change) -> None:
        done: dict[int, Tensor] = {}  # segments share tensors, and are compared by identity

        def once(t: Tensor | None) -> Tensor | None:
            if t is None:
                return None
            if id(t) not in done:
                done[id(t)] = change(t)
            return done[id(t)]

        for s in self.ledger.segments:
            s.mask, s.shift = once(s.mask), once(s.shift)


def extend(past: Tensor | None, length: int, new: Tensor | None, like: Tensor) -> Tensor | None:
    """Mask of `length` cached tokens and the new ones behind them; None where all are real.

    Args:
        past: [B, length]; None: all real.
        new: [B, count]; None: all real.
        like: [B, count], for sizes and device.
    """
    if past is None and new is None:
        return None
    if past is None:
        past = like.new_ones(like.shape[0], length)
    if new is None:
        new = torch.ones_like(like)
    return torch.cat([past.to(new.device), new], 1) if length else new
