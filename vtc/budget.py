"""What the user asked for → how many visual tokens per image this method leaves.

The arithmetic needs no weights: a method that was made without any says everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from vtc.allowed import SHARE, number, whole
from vtc.errors import UserError
from vtc.identity import setting

if TYPE_CHECKING:
    from vtc.interface import BackboneShape, Compressor

BUDGETS = ("tokens", "ratio", "compression", "flops")
PROMPT = 64  # text tokens of the prompt in FLOPs budgets: Victor's efficiency protocol


@dataclass(frozen=True)
class Budget:
    """At most one of the four is set; none set means the method's default.

    Attributes:
        tokens: visual tokens left per image at the end, exactly.
        ratio: the same as a share of the visual tokens that the backbone has, in (0, 1].
        compression: LLaVolta's compression ratio (eq. 3): visual tokens of all layers, uncompressed / compressed; ≥ 1.
        flops: prefill FLOPs of the decoder relative to uncompressed (64 text tokens), in (0, 1].
    """

    tokens: int | None = setting(None, allowed=whole(1).or_null())
    ratio: float | None = setting(None, allowed=SHARE.or_null())
    compression: float | None = setting(
        None, allowed=number("a number from 1 on (5.57 is LLaVolta's 557 %)", least=1).or_null()
    )
    flops: float | None = setting(None, allowed=SHARE.or_null())

    def __post_init__(self) -> None:
        if len(self.requested) > 1:
            text = ", ".join(f"{k}={v}" for k, v in self.requested.items())
            raise UserError(f"{text}: give only one of tokens, ratio, compression, flops")
        for field in fields(self):
            field.metadata["allowed"].check(field.name, getattr(self, field.name))

    @property
    def requested(self) -> dict[str, float]:
        """What the user set, e.g. `{"tokens": 16}`; empty if nothing."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    def resolve(self, method: Compressor) -> int | None:
        """Visual tokens per image that are left at the end; None: the method's default.

        `tokens` is met exactly or refused. `ratio`, `compression` and `flops` take, of the counts that the method
        offers, the one that comes nearest; a `compression` or `flops` that no count can reach is refused.

        Args:
            method: its own `tokens` don't matter.

        Raises:
            UserError: this method can't meet the budget on this backbone.
        """
        if not self.requested:
            return None
        shape, full = method.shape, method.shape.visual_tokens
        key, value = next(iter(self.requested.items()))
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
        measure = compression_ratio if key == "compression" else relative_flops
        costs = {t: measure(method.with_tokens(t).layer_tokens(), shape) for t in offers}
        lowest, highest = min(costs.values()), max(costs.values())
        if not lowest * 0.98 <= value <= highest * 1.02:
            raise UserError(
                f"{key}={value}: {name} on {shape.name} reaches {lowest:.3g} to {highest:.3g}, "
                f"with {listed(offers)} tokens"
            )
        return min(offers, key=lambda t: (abs(costs[t] - value), t))


def compression_ratio(layer_tokens: Sequence[int], shape: BackboneShape) -> float:
    """LLaVolta's CR (eq. 3): n·L / ((n−K)·L_out + K·L), for any list of visual tokens per decoder layer."""
    return shape.depth * (shape.visual_tokens or 0) / sum(layer_tokens)


def decoder_flops(layer_tokens: Sequence[int], shape: BackboneShape, text: int = PROMPT) -> float:
    """FLOPs of a prefill through the decoder layers; a multiply-add is two, and causal attention is halved.

    Args:
        layer_tokens: visual tokens in each decoder layer.
        text: text tokens beside them.
    """
    head = shape.head_width
    weights = shape.width * head * (2 * shape.heads + 2 * shape.kv_heads) + 3 * shape.width * shape.intermediate
    return sum(2.0 * (v + text) * weights + 2.0 * (v + text) ** 2 * shape.heads * head for v in layer_tokens)


def relative_flops(layer_tokens: Sequence[int], shape: BackboneShape, text: int = PROMPT) -> float:
    """`decoder_flops` relative to those of the uncompressed decoder."""
    full = [shape.visual_tokens or 0] * shape.depth
    return decoder_flops(layer_tokens, shape, text) / decoder_flops(full, shape, text)


def listed(offers: Sequence[int]) -> str:
    """`1, 9, 36, 144`, or `1 to 576` where it offers every count in between."""
    offers = sorted(offers)
    if len(offers) > 2 and offers == list(range(offers[0], offers[-1] + 1)):
        return f"{offers[0]} to {offers[-1]}"
    return ", ".join(str(o) for o in offers)
