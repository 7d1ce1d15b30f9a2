"""LLaVolta's training stages (arXiv 2406.20092, table 1).

Stages count optimizer steps (the authors' code counts forward passes, which moves with gradient accumulation).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor
from typing import Any

from vtc.errors import UserError, unknown


@dataclass(frozen=True)
class CompressionStage:
    """For `share` of the steps, average pooling with `stride` before `layer` (both None: no compression)."""

    layer: int | None = None
    stride: int | None = None
    share: float | None = None  # None: an equal share of what is left

    @property
    def compresses(self) -> bool:
        return self.layer is not None and self.stride is not None and self.stride > 1


def _stages(*pairs: tuple[int, int] | None) -> tuple[CompressionStage, ...]:
    share = 1 / len(pairs)
    return tuple(CompressionStage(share=share) if p is None else CompressionStage(p[0], p[1], share) for p in pairs)


# LLaVolta, table 1: (layer, stride) of each stage; every stage takes an equal share of ONE epoch.
SCHEMES: dict[str, tuple[CompressionStage, ...]] = {
    "single": _stages(None),
    "two": _stages((2, 8), None),
    "three_deeper": _stages((2, 8), (16, 8), None),
    "three_wider": _stages((2, 8), (2, 2), None),
    "four_wider_then_deeper": _stages((2, 8), (2, 2), (16, 2), None),
    "four_deeper_then_wider": _stages((2, 8), (16, 8), (16, 2), None),
}


def parse_stages(spec: str | Sequence[CompressionStage | Mapping[str, Any]]) -> tuple[CompressionStage, ...]:
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
        if not isinstance(s, CompressionStage):
            wrong = sorted(set(s) - {"layer", "stride", "share"})
            if wrong:
                raise unknown(f"schedule.stages[{i}]", wrong[0], ("layer", "stride", "share"))
            s = CompressionStage(s.get("layer"), s.get("stride"), s.get("share"))
        if (s.layer is None) != (s.stride is None):
            raise UserError(
                f"schedule.stages[{i}]: layer={s.layer}, stride={s.stride}; give both, or neither for no compression"
            )
        if s.stride is not None and s.stride < 1:
            raise UserError(f"schedule.stages[{i}].stride={s.stride}: allowed: 1 or more")
        stages.append(s)
    if not stages:
        raise UserError("schedule.stages=[]: at least one stage is needed")
    fixed = sum(s.share for s in stages if s.share is not None)
    open_ = sum(s.share is None for s in stages)
    rest = (1 - fixed) / open_ if open_ else 0.0
    stages = [s if s.share is not None else replace(s, share=rest) for s in stages]
    if abs(sum(s.share or 0 for s in stages) - 1) > 1e-6 or any((s.share or 0) <= 0 for s in stages):
        raise UserError(f"schedule.stages: shares {[s.share for s in stages]}; they must be positive and sum to 1")
    return tuple(stages)


def stage_at(stages: Sequence[CompressionStage], step: int, total: int) -> CompressionStage:
    """The stage of optimizer step `step` (0-based) of `total`; shares are rounded to whole steps."""
    end = 0.0
    for stage in stages:
        end += stage.share or 0.0
        if step < floor(end * total + 0.5):
            return stage
    return stages[-1]
