"""Recipes of FitPrune: which share of an image's drops is done before each decoder layer."""

from __future__ import annotations

import functools
import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import Any

from vtc import shipped
from vtc.allowed import SHARE, number
from vtc.errors import UserError
from vtc.interface import BackboneShape

FOLDER = "benchmarks/fitprune"  # recipes that come with vtc, by the name of the backbone; others are another version
PAPERS = "llava15_7b"  # whose recipes its authors state
COMMAND = "python -m vtc action=calibrate method=fitprune"


@dataclass(frozen=True)
class Recipe:
    """What is dropped where, for one budget.

    Attributes:
        left: share of an image's visual tokens that is left in the end.
        shares: for each decoder layer the share of all drops that is done before it: from 0 to 1.
    """

    left: float
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Recipes:
    """Recipes of one decoder, by what they leave, fewest first."""

    recipes: tuple[Recipe, ...]

    def shares(self, left: float) -> tuple[float, ...]:
        """The shares for a budget: between two recipes interpolated by what they leave, beyond them the nearest's."""
        at = bisect_left([recipe.left for recipe in self.recipes], left)
        below, above = self.recipes[max(0, at - 1)], self.recipes[min(at, len(self.recipes) - 1)]
        way = (left - below.left) / (above.left - below.left) if above.left > below.left else 0.0
        way = min(1.0, max(0.0, way))
        return tuple(a + (b - a) * way for a, b in zip(below.shares, above.shares, strict=True))


def recipes_of(value: Any, shape: BackboneShape) -> Recipes:
    """What the option `recipe` comes to on a backbone.

    Args:
        value: what a file of `action=calibrate` holds; None: what comes with vtc.

    Raises:
        UserError: something else, or recipes of a decoder with another number of layers.
    """
    if value is None:
        own = _shipped(shape.name.partition(" ")[0]) or _shipped(PAPERS)  # of a composition: `pocket after visionzip`
        return Recipes(tuple(Recipe(recipe.left, scaled(recipe.shares, shape.depth)) for recipe in own))
    entries = value.get("recipes") if isinstance(value, Mapping) else None
    if not isinstance(entries, Sequence) or not entries or not all(map(is_recipe, entries)):
        raise UserError(f"method.recipe: allowed: a file that {COMMAND} wrote, null")
    read = _read(entries)
    if depth := next((len(recipe.shares) for recipe in read if len(recipe.shares) != shape.depth), None):
        raise UserError(
            f"method.recipe: is for {depth} decoder layers, and {shape.name} has {shape.depth}; make its own: "
            f"{COMMAND} backbone={shape.name} tokens=<number>"
        )
    return Recipes(read)


def is_recipe(entry: Any) -> bool:
    """Whether this is a mapping with what is left and rising shares from 0 to 1."""
    if not isinstance(entry, Mapping) or not SHARE.accepts(entry.get("left")):
        return False
    shares, kind = entry.get("shares"), number(least=0, most=1)
    if not isinstance(shares, (list, tuple)) or len(shares) < 2 or not all(map(kind.accepts, shares)):
        return False
    return shares[0] == 0 and shares[-1] == 1 and list(shares) == sorted(shares)


def scaled(shares: Sequence[float], depth: int) -> tuple[float, ...]:
    """Shares of another decoder: each layer has those of its relative depth, interpolated, and the last one is 1."""
    if len(shares) == depth or depth < 2:
        return tuple(shares[:depth])
    own = []
    for layer in range(depth):
        place = layer * len(shares) / depth
        at = floor(place)
        following = shares[at + 1] if at + 1 < len(shares) else shares[-1]
        own.append(shares[at] + (following - shares[at]) * (place - at))
    return tuple(share / own[-1] for share in own)


def _read(entries: Sequence[Mapping[str, Any]]) -> tuple[Recipe, ...]:
    recipes = [Recipe(float(entry["left"]), tuple(map(float, entry["shares"]))) for entry in entries]
    return tuple(sorted(recipes, key=lambda recipe: recipe.left))


@functools.cache
def _shipped(name: str) -> tuple[Recipe, ...]:
    """The recipes that come with vtc for a backbone; none where there are none."""
    file = Path(shipped.path(FOLDER), f"{name}.json")
    return _read(json.loads(file.read_text(encoding="utf-8"))["recipes"]) if file.is_file() else ()
