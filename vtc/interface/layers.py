"""Layer numbers of the papers on decoders of other depths."""

from __future__ import annotations

from math import floor
from typing import Any

from vtc.errors import UserError, unknown

PAPER_DEPTH = 32  # decoder layers of the models in the papers (7B)


def scaled_layer(k: int, depth: int) -> int:
    """The layer that stands for the papers' layer `k` in a decoder of `depth` layers.

    Layers 0 and 1 have a meaning of their own (before the LLM, after one layer) and stay; all others keep their
    relative depth, but never less than 2: `k if k < 2 else max(2, floor(k * depth / 32 + 0.5))`.
    """
    return k if k < 2 else max(2, floor(k * depth / PAPER_DEPTH + 0.5))


def resolve_layer(layer: Any, depth: int, scale: str = "auto", lowest: int = 0, key: str = "method.layer") -> int:
    """A user's layer number as an index into a decoder of `depth` layers.

    Args:
        scale: "auto" reads `layer` as the papers' number for 32 layers (`scaled_layer`), "none" takes it literally.
        lowest: the first layer before which the method can act (1 where it needs attention of the layer before).

    Raises:
        UserError: not a whole number, or a layer that this decoder doesn't have.
    """
    if scale not in ("auto", "none"):
        raise unknown("method.layer_scale", scale, ("auto", "none"))
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise UserError(f"{key}={layer}: allowed: a whole number")
    own = scaled_layer(layer, depth) if scale == "auto" else layer
    if layer < lowest or own >= depth:
        highest = (
            max(k for k in range(PAPER_DEPTH + 1) if scaled_layer(k, depth) < depth) if scale == "auto" else depth - 1
        )
        how = f" (for {PAPER_DEPTH} layers; layer_scale=none takes it literally)" if scale == "auto" else ""
        raise UserError(f"{key}={layer}: this decoder has {depth} layers; allowed: {lowest} to {highest}{how}")
    return own
