"""Models that people ask for, which no family reads yet, and what stands in the way."""

from __future__ import annotations

_EXPERTS = (
    "beside the experts that a router chooses a shared one reads every token, which neither the sizes here nor the "
    "adapters know"
)
WHY = {"qwen3_5_moe": _EXPERTS}
