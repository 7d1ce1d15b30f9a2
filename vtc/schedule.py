"""Where a method acts, and when: layer numbers of the papers on other depths, and LLaVolta's training stages.

Stages count optimizer steps (the authors' code counts forward passes, which moves with gradient accumulation).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Stage:
    """For `share` of the steps, average pooling with `stride` before `layer` (both None: no compression)."""

    layer: int | None = None
    stride: int | None = None
    share: float | None = None  # None: an equal share of what is left

    @property
    def compresses(self) -> bool:
        return self.layer is not None and self.stride is not None and self.stride > 1


def _stages(*pairs: tuple[int, int] | None) -> tuple[Stage, ...]:
    share = 1 / len(pairs)
    return tuple(Stage(share=share) if p is None else Stage(p[0], p[1], share) for p in pairs)


# LLaVolta, table 1: (layer, stride) of each stage; every stage takes an equal share of ONE epoch.
SCHEMES: dict[str, tuple[Stage, ...]] = {
    "single": _stages(None),
    "two": _stages((2, 8), None),
    "three_deeper": _stages((2, 8), (16, 8), None),
    "three_wider": _stages((2, 8), (2, 2), None),
    "four_wider_then_deeper": _stages((2, 8), (2, 2), (16, 2), None),
    "four_deeper_then_wider": _stages((2, 8), (16, 8), (16, 2), None),
}


def parse_stages(spec: str | Sequence[Stage | Mapping[str, Any]]) -> tuple[Stage, ...]:
    """A scheme's name, or a list of `{layer, stride, share}`, as stages whose shares sum to 1.

    Raises:
        UserError: unknown scheme, a stage with a layer but no stride (or the reverse), or shares that don't sum to 1.
    """
    if isinstance(spec, str):
        if spec not in SCHEMES:
            raise unknown("schedule", spec, SCHEMES)
        return SCHEMES[spec]
    stages = []
    for i, s in enumerate(spec):
        if not isinstance(s, Stage):
            wrong = sorted(set(s) - {"layer", "stride", "share"})
            if wrong:
                raise unknown(f"schedule.stages[{i}]", wrong[0], ("layer", "stride", "share"))
            s = Stage(s.get("layer"), s.get("stride"), s.get("share"))
        if (s.layer is None) != (s.stride is None):
            raise UserError(
                f"schedule.stages[{i}]: layer={s.layer}, stride={s.stride}; give both, or neither for no compression"
            )
        if s.stride is not None and s.stride < 1:
            raise UserError(f"schedule.stages[{i}].stride={s.stride}: allowed: 1 or more")
        stages.append(s)
    if not stages:
        raise UserError("schedule.stages=[]: at least one stage is needed")
    given = sum(s.share for s in stages if s.share is not None)
    open_ = sum(s.share is None for s in stages)
    rest = (1 - given) / open_ if open_ else 0.0
    stages = [s if s.share is not None else Stage(s.layer, s.stride, rest) for s in stages]
    if abs(sum(s.share or 0 for s in stages) - 1) > 1e-6 or any((s.share or 0) <= 0 for s in stages):
        raise UserError(f"schedule.stages: shares {[s.share for s in stages]}; they must be positive and sum to 1")
    return tuple(stages)


def stage_at(stages: Sequence[Stage], step: int, total: int) -> Stage:
    """The stage of optimizer step `step` (0-based) of `total`; shares are rounded to whole steps."""
    end = 0.0
    for stage in stages:
        end += stage.share or 0.0
        if step < floor(end * total + 0.5):
            return stage
    return stages[-1]


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
    found = scaled_layer(layer, depth) if scale == "auto" else layer
    if layer < lowest or found >= depth:
        highest = (
            max(k for k in range(PAPER_DEPTH + 1) if scaled_layer(k, depth) < depth) if scale == "auto" else depth - 1
        )
        how = f" (for {PAPER_DEPTH} layers; layer_scale=none takes it literally)" if scale == "auto" else ""
        raise UserError(f"{key}={layer}: this decoder has {depth} layers; allowed: {lowest} to {highest}{how}")
    return found
