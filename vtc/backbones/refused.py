"""Models that people ask for, which no family reads yet, and what stands in the way."""

from __future__ import annotations

_WINDOWS = (
    "most of its layers attend in a sliding window, with a cache and rotary frequencies of their own, and the tokens "
    "of an image see each other both ways, while the engine runs all layers under one causal mask, one rotary "
    "table and caches of full attention"
)
_STATES = (
    "three of four of its layers have linear attention, whose state can't be taken apart again: tokens that are "
    "dropped between layers would stay in it, and the engine keeps its ledger of caches alone"
)
WHY = {"gemma3": _WINDOWS, "qwen3_5": _STATES, "qwen3_5_moe": _STATES}
