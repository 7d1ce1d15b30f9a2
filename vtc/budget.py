"""What the user asked for → how many visual tokens per image this method leaves.

The arithmetic needs no weights: a method that was made without any says everything.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import ceil
from typing import TYPE_CHECKING, Any

from vtc.allowed import SHARE, number, one_of, whole
from vtc.errors import UserError
from vtc.identity import setting

if TYPE_CHECKING:
    from vtc.interface import BackboneShape, Compressor

BUDGETS = ("tokens", "ratio", "compression", "flops")
EACH, MEAN = "each", "mean"  # whether every image has the budget, or images have it in the mean
PROMPT = 64  # text tokens of the prompt in FLOPs budgets: Victor's efficiency protocol


@dataclass(frozen=True)
class Budget:
    """At most one of the four is set; none set means the method's default.

    What they come to is a number of visual tokens that each image has left, or, where `spread` is `mean`, that the
    images of a task have in the mean.

    Attributes:
        tokens: visual tokens left per image at the end, exactly.
        ratio: the same as a share of the visual tokens that the backbone has, in (0, 1].
        compression: LLaVolta's compression ratio (eq. 3): visual tokens of all layers, uncompressed / compressed, in
            every pass of the decoder; ≥ 1.
        flops: at most these prefill FLOPs, of decoder and method, relative to uncompressed (64 text tokens), in (0, 1].
        spread: `budget=` on the command line, `each` or `mean`.
    """

    tokens: int | None = setting(None, allowed=whole(1).or_null())
    ratio: float | None = setting(None, allowed=SHARE.or_null())
    compression: float | None = setting(
        None, allowed=number("a number from 1 on (5.57 is LLaVolta's 557 %)", least=1).or_null()
    )
    flops: float | None = setting(None, allowed=SHARE.or_null())
    spread: str = setting(EACH, allowed=one_of(EACH, MEAN), later=True)

    def __post_init__(self) -> None:
        if len(self.requested) > 1:
            text = ", ".join(f"{k}={v}" for k, v in self.requested.items())
            raise UserError(f"{text}: give only one of tokens, ratio, compression, flops")
        for field in fields(self):
            key = "budget" if field.name == "spread" else field.name
            field.metadata["allowed"].check(key, getattr(self, field.name))

    @property
    def requested(self) -> dict[str, float]:
        """What the user set, e.g. `{"tokens": 16}`; empty if nothing."""
        return {key: getattr(self, key) for key in BUDGETS if getattr(self, key) is not None}

    @property
    def is_mean(self) -> bool:
        """Whether images differ in how many tokens they have left."""
        return self.spread == MEAN

    @property
    def is_default(self) -> bool:
        """Whether nothing was asked for."""
        return not self.requested and not self.is_mean

    def config(self) -> dict[str, Any]:
        """In the words of the command line; `budget` where it isn't what goes without saying."""
        return {key: getattr(self, key) for key in BUDGETS} | ({"budget": self.spread} if self.is_mean else {})

    def resolve(self, method: Compressor) -> int | None:
        """Visual tokens per image that are left at the end; None: the method's default.

        `tokens` is met exactly or refused. `ratio` and `compression` take, of the counts that the method offers, the
        one that comes nearest, `flops` the nearest that doesn't cost more; a `compression` or `flops` that no count can
        reach is refused.

        Args:
            method: its own `tokens` don't matter.

        Raises:
            UserError: this method can't meet the budget on this backbone.
        """
        if self.is_mean and not method.spreads:
            raise UserError(
                f"budget={MEAN}: {method.name} leaves every image as many tokens; allowed: budget={EACH}, or a method "
                "that says how complex an image is (prunesid)"
            )
        if not self.requested:
            return None
        shape, full = method.shape, method.shape.visual_tokens
        key, value = next(iter(self.requested.items()))
        if type(method).repairs and self.tokens != (full or 0) and self.ratio != 1:
            raise UserError(f"{key}={value}: {method.name} leaves every token; put it behind a method that merges")
        if full is None:
            if self.tokens is None:
                raise UserError(f"{key}={value}: {shape.name} has no fixed number of visual tokens; use tokens=")
            method.offers()  # a method that can't do without one says so
            return int(self.tokens)
        offers, name = method.offers(), method.name
        if self.tokens is not None:
            if self.tokens not in offers:
                raise UserError(f"tokens={self.tokens}: {name} on {shape.name} offers {listed(offers)}")
            return int(self.tokens)
        if self.ratio is not None:
            goal = self.ratio * full
            return min(offers, key=lambda t: (abs(t - goal), t))
        offers, measure = sorted(offers), relative_flops if self.flops is not None else compression
        cost = functools.cache(lambda tokens: measure(method.with_tokens(tokens)))
        ends = sorted((cost(offers[0]), cost(offers[-1])))
        if self.flops is not None and ends[0] <= value <= ends[1] * 1.02:
            bound = value * (1 + 1e-9)
            if cost(offers[-1]) <= bound:
                return offers[-1]
            return offers[bisect.bisect_right(offers, bound, key=cost) - 1]
        if self.compression is not None and ends[0] * 0.98 <= value <= ends[1] * 1.02:
            return min(offers, key=lambda t: (abs(cost(t) - value), t))
        least = f"{ceil(1000 * ends[0]) / 1000 if self.flops is not None else ends[0]:.4g}"
        stored = sorted(measure(method.with_tokens(tokens), beforehand=True) for tokens in (offers[0], offers[-1]))
        differs = any(abs(there - now) > 0.02 * now for there, now in zip(stored, ends, strict=True))
        raise UserError(
            f"{key}={value}: {name} on {shape.name} reaches {least} to {ends[1]:.3g}, with {listed(offers)} tokens"
            + (f"; {stored[0]:.3g} to {stored[1]:.3g} where images were compressed beforehand" if differs else "")
        )


def compression_ratio(layer_tokens: Sequence[float], shape: BackboneShape) -> float:
    """LLaVolta's CR (eq. 3): n·L / ((n−K)·L_out + K·L), for any list of visual tokens per decoder layer."""
    return shape.depth * (shape.visual_tokens or 0) / sum(layer_tokens)


def compression(method: Compressor, beforehand: bool = False) -> float:
    """`compression_ratio` over every pass of the decoder, those that the method runs itself among them.

    Args:
        beforehand: of the pass that answers alone, from what was stored of an image.
    """
    if beforehand:
        return compression_ratio(method.cached_tokens(), method.shape)
    own = [one.visual for one in method.own_passes(method.shape.visual_tokens or 0, PROMPT)] * method.shape.depth
    return compression_ratio([*own, *method.layer_tokens()], method.shape)


def relative_flops(method: Compressor, text: int = PROMPT, beforehand: bool = False) -> float:
    """FLOPs of a prefill of one image and `text` other tokens, relative to those of the uncompressed decoder.

    Every pass of the decoder counts, those that the method runs itself among them, with their LoRA adapters, the output
    embedding of the last token, and the method's own arithmetic (`Compressor.own_flops`). Tower and projector don't.

    Args:
        beforehand: what is left of it where the image was compressed before the question came.
    """
    from vtc.interface import flops

    shape, calls, own = method.shape, method.calls(text), method.own_flops(text)
    if beforehand and not method.needs_question:
        calls = method.answering_calls(calls, text)
        own = own if method.layer_tokens()[0] >= (shape.visual_tokens or 0) else 0.0
    return (flops.total(shape, calls) + flops.head(shape) + own) / flops.uncompressed(shape, text)


def listed(offers: Sequence[int]) -> str:
    """`1, 9, 36, 144`, or `1 to 576` where it offers every count in between."""
    offers = sorted(offers)
    if len(offers) > 2 and offers == list(range(offers[0], offers[-1] + 1)):
        return f"{offers[0]} to {offers[-1]}"
    return ", ".join(str(o) for o in offers)
