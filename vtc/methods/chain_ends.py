"""What is asked of each of the methods that stand one behind the other: a budget of its own, or the end's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vtc.interface import BackboneShape
from vtc.registry import methods


def budgets_of(
    parts: Mapping[str, str], options: Mapping[str, Any], shape: BackboneShape, tokens: int | None
) -> tuple[list[float | None], list[bool]]:
    """The budget of each part, None where it is open, and whether it is the end's.

    The end's is the last part's; and where that leaves all it finds (`Compressor.repairs`), the one's before it too, if
    it has none of its own.

    Args:
        parts: the method of each, by the key of its options. tokens: what is to be left at the end.
    """
    budgets: list[float | None] = [_budget(options.get(key, {}), shape) for key in parts]
    budgets[-1], names = tokens, [*parts.values()]
    ends = [False] * (len(names) - 1) + [True]
    for n in range(len(names) - 1, 0, -1):
        if ends[n] and methods.get(names[n]).repairs and budgets[n - 1] is None:
            budgets[n - 1], ends[n - 1] = tokens, True
    return budgets, ends


def _budget(options: Mapping[str, Any], shape: BackboneShape) -> float | None:
    """The budget of an earlier part; a ratio as the number of tokens that it comes to."""
    if options.get("ratio") is not None and shape.visual_tokens is not None:
        return float(options["ratio"] * shape.visual_tokens)
    return options.get("tokens")
