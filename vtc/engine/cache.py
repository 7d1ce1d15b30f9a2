"""A DynamicCache whose layers hold different numbers of tokens, and which still counts as the user does.

`generate()` knows the external layout only: the original input_ids, their mask and positions. The ledger beside the
keys and values says how each segment of layers differs from it, and goes wherever the cache goes: beams, further turns,
cropping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from vtc.engine.recurrent import attending, change_rows
from vtc.errors import UserError

# What models, layers and masks call the cache among their arguments: transformers 5.24 gave it a new name.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


def cache_among(arguments: Mapping[str, Any]) -> Any:
    """The cache of a call with these keyword arguments, under either name; None where there is none."""
    cache = arguments.get(CACHE)
    return arguments.get("past_key_values") if cache is None else cache


@dataclass(frozen=True)
class Past:
    """What layers of one segment held before this call.

    Attributes:
        length: cached tokens, P; 0 in layers that hold states alone.
        mask, shift, size, position: as in `Segment`.
    """

    length: int
    mask: Tensor | None
    shift: Tensor | None
    size: Tensor | None = None
    position: Tensor | None = None

    def same_as(self, other: Past) -> bool:
        """Whether it is the same tensors: what was made for one of the two then holds for the other."""
        same = self.mask is other.mask and self.shift is other.shift and self.size is other.size
        return same and self.position is other.position and self.length == other.length

    def extended(self, new: Tensor | None, like: Tensor) -> Tensor | None:
        """Mask [B, P + L] of the cached tokens and L new ones behind them; None where all are real.

        Args:
            new: [B, L]; None: all real.
            like: [B, L], for sizes and device.
        """
        return self._extended(self.mask, new, like)

    def extended_size(self, new: Tensor | None, like: Tensor) -> Tensor | None:
        """`TokenSequence.size` [B, P + L] of the cached tokens and L new ones behind them; None where each counts once.

        Args:
            new: [B, L]; None: each counts once. like: [B, L], for sizes and device.
        """
        return self._extended(self.size, new, like)

    def extended_position(self, new: Tensor, counted: bool) -> Tensor:
        """Positions [B, P + L] of the cached tokens and L new ones at `new` [B, L] behind them.

        Args:
            counted: whether the positions of cached tokens that nothing has noted count the real ones alone, as
                `generate` does; else padding too.
        """
        if not self.length:
            return new
        past = self.position
        if past is None:
            real = torch.ones_like(new[:, :1]).expand(-1, self.length)
            real = real if self.mask is None or not counted else self.mask.to(real)
            past = (real.cumsum(1) - 1).clamp(min=0)
        return torch.cat([past.to(new.device), new], 1)

    def _extended(self, past: Tensor | None, new: Tensor | None, like: Tensor) -> Tensor | None:
        if past is None and new is None:
            return None
        if past is None:
            past = like.new_ones(like.shape[0], self.length)
        if new is None:
            new = torch.ones_like(like)
        return torch.cat([past.to(new.device), new], 1) if self.length else new


@dataclass
class Segment:
    """Layers that all hold the same tokens.

    Attributes:
        layers: of the decoder.
        mask: [B, P] bool, the real ones of the P cached tokens; None: all are.
        shift: [B, 1] added to the external positions of tokens to come; None: nothing.
        size: [B, P] how often attention counts each of the P cached tokens; None: once.
        position: [B, P] of the cached tokens, by which windows are told; None: nobody has noted them.
    """

    layers: range
    mask: Tensor | None = None
    shift: Tensor | None = None
    size: Tensor | None = None
    position: Tensor | None = None

    @property
    def start(self) -> int:
        """The first of its layers: the method acts before it."""
        return self.layers.start

    def past(self, cache: Cache | None) -> Past:
        layer = None if cache is None else attending(cache, self.layers)
        length = 0 if cache is None or layer is None else cache.get_seq_length(layer)
        return Past(length, self.mask, self.shift, self.size, self.position)


@dataclass
class Ledger:
    """How the layers' contents differ from what the user has passed in.

    Example: 3 words, an image of 4 visual tokens and 2 words, 9 tokens at positions 0…8, in a decoder of 4 layers.
    After the prefill `seen` is 9, whatever was dropped, and `tail` 2: the words behind the image.

    - FastV, 1 token before layer 2: the segment of layers 0-1 holds 9 tokens, that of layers 2-3 holds 6. What was
      rotated keeps its position, so neither has a `shift`, and the next token has position 9 in both.
    - 1 token before layer 0: one segment of layers 0-3, which holds 6 tokens at positions 0…5. Its `shift` is -3: the
      next token, to which the user gives position 9, goes to 6.

    Where rows keep different numbers of tokens, the shorter ones are padded on the left, and `Segment.mask` says where.

    Attributes:
        seen: external tokens in the cache.
        tail: the last so many of them have one entry of their own in every layer, and can be cropped off.
        segments: from the first layer to the last.
    """

    seen: int
    tail: int | Tensor  # reading it would make the prefill wait for the device
    segments: list[Segment] = field(default_factory=list)


def require_dynamic(cache: Cache, windows: bool = False, recurrent: bool = False) -> None:
    """Raises `UserError` for a cache whose layers can't hold different numbers of tokens.

    Args:
        windows: whether the decoder has layers that attend in one, whose caches can be made whole.
        recurrent: whether it has layers that hold states.
    """
    if type(cache) not in (DynamicCache, CompressedCache) or (any(cache.is_sliding) and not windows):
        raise UserError(
            f"cache: compression drops tokens layer by layer, which a {type(cache).__name__} can't hold; "
            "allowed: a DynamicCache with full attention (generate's default)"
        )
    if recurrent and not any(cache.is_linear):
        raise UserError("cache: it has no place for the states of linear attention; DynamicCache(config=…) makes one")


def ledger_of(cache: Cache, layers: list[range], mask: Tensor | None, method: str) -> Ledger:
    """The ledger of a cache, which becomes a compressed one if it is none yet.

    Args:
        layers: of each segment, by those before which `method` acts.
        mask: [B, seen + T] of everything that the user has passed in, this call's T tokens among it; None: all real.

    Raises:
        UserError: the cache was filled by a method that acts before other layers.
    """
    if not isinstance(cache, CompressedCache):
        seen = cache.get_seq_length()
        CompressedCache.adopt(cache, layers, mask[:, :seen].bool() if mask is not None and seen else None)
    ledger = cast(CompressedCache, cache).ledger
    if [s.layers for s in ledger.segments] != layers:
        raise UserError(f"cache: filled by a method that acts before other layers than {method}; take a new one")
    return ledger


class CompressedCache(DynamicCache):
    """A DynamicCache with a ledger. Without a layer number its length is the external one, which `generate` goes by."""

    ledger: Ledger

    @classmethod
    def adopt(cls, cache: Cache, layers: list[range], mask: Tensor | None) -> CompressedCache:
        """Turns `cache` itself (others hold references to it) into a compressed one.

        Args:
            layers: of each segment.
            mask: [B, cached] of the tokens that it already holds, uncompressed; None: none, or all real.
        """
        seen = DynamicCache.get_seq_length(cache)
        if any(cache.is_sliding):
            cache.layers = [_whole(layer, seen) for layer in cache.layers]
        cache.__class__ = cls
        compressed = cast(CompressedCache, cache)
        compressed.ledger = Ledger(seen, seen, [Segment(of_segment, mask) for of_segment in layers])
        return compressed

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        return self.ledger.seen if layer_idx is None else super().get_seq_length(layer_idx)

    @property
    def has_states(self) -> bool:
        """Whether layers with linear attention hold states in it."""
        return any(self.is_linear)

    def crop(self, tokens_to_remove: int) -> None:
        if self.has_states:
            raise ValueError("can't crop a cache with states of linear attention: no token can be taken out of them")
        n = abs(tokens_to_remove)
        if tokens_to_remove < 0 and n > self.ledger.tail:
            whole = int(self.ledger.tail)
            raise ValueError(f"can't take {n} tokens off a compressed cache: only its last {whole} are whole")
        super().crop(tokens_to_remove)
        self.ledger.seen -= n
        self.ledger.tail = self.ledger.tail - n
        for s in self.ledger.segments:
            s.mask = None if s.mask is None else s.mask[:, : s.mask.shape[1] - n]
            s.size = None if s.size is None else s.size[:, : s.size.shape[1] - n]
            s.position = None if s.position is None else s.position[:, : s.position.shape[1] - n]

    def keep(self, layers: range, past: int, order: Tensor) -> None:
        """Of the tokens behind the first `past` ones only those at `order` [B, n], in these layers."""
        for layer in (self.layers[i] for i in layers):
            for name in ("keys", "values"):
                whole = getattr(layer, name)  # [B, H, past + L, d]
                index = order.to(whole.device)[:, None, :, None].expand(-1, whole.shape[1], -1, whole.shape[3])
                setattr(layer, name, torch.cat([whole[:, :, :past], whole[:, :, past:].gather(2, index)], 2))

    def reset(self) -> None:
        super().reset()
        self.ledger = Ledger(0, 0, [Segment(s.layers) for s in self.ledger.segments])

    def reorder_cache(self, beam_idx: Any) -> None:
        super().reorder_cache(beam_idx)
        self._change_rows(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._take_rows(lambda t: t.repeat_interleave(repeats, dim=0), "batch_repeat_interleave", repeats)
        self._change_rows(lambda t: t.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._take_rows(lambda t: t[indices.to(t.device)], "batch_select_indices", indices)
        self._change_rows(lambda t: t[indices.to(t.device)])

    def _take_rows(self, change: Callable[[Tensor], Tensor], verb: str, argument: Any) -> None:
        """transformers' own `verb` of each layer; its layers that hold states have none."""
        for layer, linear in zip(self.layers, self.is_linear, strict=True):
            if linear:
                change_rows(layer, change)
            else:
                getattr(layer, verb)(argument)

    def _change_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        # Segments share tensors, and must go on doing so: they are compared by identity.
        held = [t for s in self.ledger.segments for t in (s.mask, s.shift, s.size, s.position)]
        shared = {id(t): t for t in held if t is not None}
        changed = {key: change(t) for key, t in shared.items()}
        for s in self.ledger.segments:
            s.mask, s.shift, s.size, s.position = (changed.get(id(t)) for t in (s.mask, s.shift, s.size, s.position))


def _whole(layer: Any, seen: int) -> Any:
    """A layer of a cache as one that holds all of the `seen` tokens.

    One that slides has let go of those that nothing behind will see; zeros stand in their places, and windows leave
    them out.
    """
    if not layer.is_sliding:
        return layer
    whole = DynamicLayer()
    if layer.is_initialized:
        whole.lazy_initialization(layer.keys, layer.values)
        gone = seen - layer.keys.shape[2]
        whole.keys, whole.values = (torch.nn.functional.pad(t, (0, 0, gone, 0)) for t in (layer.keys, layer.values))
    return whole
