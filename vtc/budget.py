"""What the user asked for → how many visual tokens per image this method leaves.

The arithmetic needs neither torch nor weights: a `BackboneShape` and the method's class say everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from vtc.errors import UserError
from vtc.registry import parts

if TYPE_CHECKING:
    from vtc.interface import BackboneShape

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

    tokens: int | None = None
    ratio: float | None = None
    compression: float | None = None
    flops: float | None = None

    def __post_init__(self) -> None:
        given = self.given()
        if len(given) > 1:
            text = ", ".join(f"{k}={v}" for k, v in given.items())
            raise UserError(f"{text}: give only one of tokens, ratio, compression, flops")
        for key, value in given.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise UserError(f"{key}={value}: allowed: a number")
        if self.tokens is not None and (int(self.tokens) != self.tokens or self.tokens < 1):
            raise UserError(f"tokens={self.tokens}: allowed: a whole number from 1 on")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise UserError(f"ratio={self.ratio}: allowed: more than 0, at most 1")
        if self.compression is not None and self.compression < 1:
            raise UserError(f"compression={self.compression}: allowed: 1 or more (5.57 is LLaVolta's 557 %)")
        if self.flops is not None and not 0 < self.flops <= 1:
            raise UserError(f"flops={self.flops}: allowed: more than 0, at most 1")

    def given(self) -> dict[str, float]:
        """What the user set, e.g. `{"tokens": 16}`; empty if nothing."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    def resolve(self, method_cls: Any, shape: BackboneShape, options: Mapping[str, Any]) -> int | None:
        """Visual tokens per image that are left at the end; None = whatever the backbone has.

        `tokens` is met exactly or refused. `ratio`, `compression` and `flops` take, of the counts that the method
        offers, the one that comes nearest; a `compression` or `flops` that no count can reach is refused.

        Raises:
            UserError: this method can't meet the budget on this backbone.
        """
        name = getattr(method_cls, "name", method_cls.__name__)
        if not self.given():
            return method_cls.default_tokens(shape, **options)
        full = shape.visual_tokens
        if full is None:
            if self.tokens is None:
                key, value = next(iter(self.given().items()))
                raise UserError(f"{key}={value}: {shape.name} has no fixed number of visual tokens; use tokens=")
            method_cls.offers(shape, **options)  # a method that can't do without one says so
            return int(self.tokens)
        offers = method_cls.offers(shape, **options)
        if self.tokens is not None:
            if self.tokens not in offers:
                raise UserError(f"tokens={self.tokens}: {name} on {shape.name} offers {listed(offers)}")
            return int(self.tokens)
        if self.ratio is not None:
            wanted = self.ratio * full
            return min(offers, key=lambda t: (abs(t - wanted), t))
        key, asked = next(iter(self.given().items()))
        measure = compression_ratio if key == "compression" else relative_flops
        costs = {t: measure(method_cls.layer_tokens(t, shape, **options), shape) for t in offers}
        lowest, highest = min(costs.values()), max(costs.values())
        if not lowest * 0.98 <= asked <= highest * 1.02:
            raise UserError(
                f"{key}={asked}: {name} on {shape.name} reaches {lowest:.3g} to {highest:.3g}, "
                f"with {listed(offers)} tokens"
            )
        return min(offers, key=lambda t: (abs(costs[t] - asked), t))


def in_words(cfg: Mapping[str, Any]) -> str:
    """The budget that a configuration asks for, `tokens=16`; with those of a composition's earlier parts, where they
    are given, `tokens=36-16`. Empty where there is none."""
    method = cfg["method"]
    earlier = [method[key] for key in [*parts(method["name"])][:-1] if key in method]
    asked = [next(((k, node[k]) for k in BUDGETS if node.get(k) is not None), None) for node in (*earlier, cfg)]
    if not any(asked[:-1]):
        asked = asked[-1:]
    keys = {pair[0] for pair in asked if pair}
    if len(keys) == 1:
        return f"{keys.pop()}={'-'.join(str(pair[1]) if pair else 'auto' for pair in asked)}"
    return "-".join(f"{pair[0]}={pair[1]}" if pair else "auto" for pair in asked) if keys else ""


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
