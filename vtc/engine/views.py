"""What a layer's tokens see where the layers of a decoder differ: Gemma 3 (arXiv 2503.19786, section 2).

Its global layers see everything before a token, the others a window of positions, each kind under rotary frequencies of
its own; and the visual tokens of an image see each other both ways, as far as the window goes. The window is told by
positions: tokens that were dropped before the LLM leave it, those dropped between its layers leave a gap, and caches
hold every token that a method has left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.errors import UserError

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone

FULL, SLIDING = "full_attention", "sliding_attention"  # as configurations call them
LINEAR = "linear_attention"
GIVEN = "given"  # under it a mask goes through a model that makes masks by kind, and would make them of this one


@dataclass(frozen=True)
class View:
    """What L tokens see of the S = P + L keys, P of which are cached, in layers of one kind.

    Attributes:
        position: [B, S] of the keys.
        image: [B, L] the image that a visual token is of, where the tokens of an image see each other both ways; -1
            elsewhere.
        window: how many positions a token sees, its own among them; None: all.
        bidirectional: whether every token sees those behind it too, as far as the window goes.
    """

    position: Tensor
    image: Tensor
    window: int | None
    bidirectional: bool = False

    def reach(self, column: Tensor) -> Tensor:
        """[B, Q, S] bool: which keys are in the reach of each query, whether they are real or not.

        Args:
            column: [B, Q] where the queries are among the L tokens.
        """
        position, image = self.position.to(column.device), self.image.to(column.device)
        total, length = position.shape[1], image.shape[1]
        key = torch.arange(total, device=column.device)
        if self.bidirectional:
            sees = torch.ones(*column.shape, total, dtype=torch.bool, device=column.device)
        else:
            sees = key <= (column + total - length)[..., None]
            own = image.gather(1, column)[..., None]
            sees[..., total - length :] |= (own >= 0) & (own == image[:, None])
        if self.window is not None:
            distance = position.gather(1, column + total - length)[..., None] - position[:, None]
            sees &= (distance.abs() if self.bidirectional else distance) < self.window
        return sees

    def every(self) -> Tensor:
        """`reach` of all L tokens, [B, L, S]."""
        rows, length = self.image.shape
        return self.reach(torch.arange(length, device=self.image.device).expand(rows, -1))


def kinds(decoder: Any) -> tuple[str | None, ...]:
    """The kind of each layer; None where all that attend are alike, under one mask and one rotary table."""
    of_layer = getattr(decoder.config, "layer_types", None) or ()
    if SLIDING in of_layer:
        return tuple(of_layer)
    if LINEAR in of_layer:
        return tuple(LINEAR if kind == LINEAR else None for kind in of_layer)
    return (None,) * decoder.config.num_hidden_layers


def window(decoder: Any, kind: str | None) -> int | None:
    """How many positions a token sees in layers of this kind; None: all."""
    return decoder.config.sliding_window if kind == SLIDING else None


def rotary(decoder: Any, hidden: Tensor, position: Tensor, kind: str | None) -> tuple[Tensor, Tensor]:
    """(cos, sin) [B, L, d] of positions [P, B, L], in the type of `hidden`."""
    place = position[0] if len(position) == 1 else position
    plain = kind in (None, LINEAR)  # linear attention is given a table too, and looks into none
    cos, sin = decoder.rotary_emb(hidden, place) if plain else decoder.rotary_emb(hidden, place, kind)
    return cos, sin


def check(backbone: Backbone) -> None:
    """Raises `UserError` for layers that the engine can't run: windows, and linear attention, of a family that doesn't
    say that it has them, and whatever else attends to no keys.
    """
    config = backbone.decoder.config
    windows = [SLIDING] if getattr(config, "sliding_window", None) else []  # Mistral says no more of it
    known = {FULL} | ({SLIDING} if backbone.windows else set()) | ({LINEAR} if backbone.recurrent else set())
    if others := {*(getattr(config, "layer_types", None) or windows)} - known:
        raise UserError(
            f"backbone={backbone.name}: layers with {', '.join(sorted(others))}; only full attention is supported"
        )


def given(mask: Any) -> Any:
    """A mask of padding in the form in which a model that makes masks by kind hands it on as it is."""
    return mask if isinstance(mask, dict) else {GIVEN: mask}


def taken(mask: Any) -> Any:
    """The mask that `given` has wrapped; any other as it is."""
    return mask[GIVEN] if isinstance(mask, dict) and GIVEN in mask else mask


def of_own_pass(decoder: Any, place: Tensor, bidirectional: bool) -> dict[str | None, View]:
    """By kind, of a pass without a cache over tokens at these positions [B, L]."""
    nobody = torch.full_like(place, -1)
    return {kind: View(place, nobody, window(decoder, kind), bidirectional) for kind in dict.fromkeys(kinds(decoder))}


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask [B, 1, L, S] that layers take of who sees whom, [B, L, S] bool. Every token sees itself, so that no row
    of padding is empty (a softmax over nothing is NaN).
    """
    length, total = allowed.shape[1:]
    itself = torch.eye(length, dtype=torch.bool, device=allowed.device)
    allowed = torch.cat([allowed[..., : total - length], allowed[..., total - length :] | itself], 2)
    logits = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return logits.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]
