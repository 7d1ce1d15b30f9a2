"""Models that people ask for, which no family reads yet, and what stands in the way."""

from __future__ import annotations

_STATES = (
    "three of four of its layers have linear attention, whose state can't be taken apart again: tokens that are "
    "dropped between layers would stay in it, and the engine keeps its ledger of caches alone"
)
WHY = {"qwen3_5": _STATES, "qwen3_5_moe": _STATES}
