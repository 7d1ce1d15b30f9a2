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

from vtc.allowed import SHARE, number
from vtc.declarations import come_with
from vtc.errors import UserError
from vtc.interface import BackboneShape

FOLDER = "benchmarks/fitprune"  # recipes that come with vtc, by the name of the backbone that they were fitted to
PAPERS = "llava15_7b"  # whose recipes the authors state
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
        value: what a file of `action=calibrate` holds; or, as `file`, the name of one that comes with vtc, scaled to
            the decoder's depth; None: the backbone's own that comes with vtc, else the authors', scaled.

    Raises:
        UserError: something else, or a file for a decoder with another number of layers.
    """
    named = fitted_to(shape) or PAPERS if value is None else value.get("file") if isinstance(value, Mapping) else None
    if named in (files := come_with(FOLDER)):
        return Recipes(tuple(Recipe(one.left, scaled(one.shares, shape.depth)) for one in _shipped(files[named])))
    entries = value.get("recipes") if isinstance(value, Mapping) else None
    if not isinstance(entries, Sequence) or not entries or not all(map(is_recipe, entries)):
        names = ", ".join(files)
        raise UserError(f"method.recipe: allowed: {names}, a file that {COMMAND} wrote, null")
    read = _read(entries)
    if depth := next((len(recipe.shares) for recipe in read if len(recipe.shares) != shape.depth), None):
        raise UserError(
            f"method.recipe: is for {depth} decoder layers, and {shape.name} has {shape.depth}; make its own: "
            f"{COMMAND} backbone={shape.name} tokens=<number>"
        )
    return Recipes(read)


def fitted_to(shape: BackboneShape) -> str | None:
    """The name of the recipes that come with vtc for this backbone; None: there are none."""
    name = shape.name.partition(" ")[0]  # of a composition: `pocket after visionzip`
    return name if name in come_with(FOLDER) else None


def unfitted(shape: BackboneShape) -> str:
    """What is said where there are none."""
    return (
        f"method.recipe=null: no recipe of fitprune comes with vtc for {shape.name}; fit one ({COMMAND} "
        f"backbone={shape.name} tokens=<number>) or take the authors' of LLaVA-1.5 7B, scaled in depth: "
        f"method.recipe={PAPERS}"
    )


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
def _shipped(file: Path) -> tuple[Recipe, ...]:
    return _read(json.loads(file.read_text(encoding="utf-8"))["recipes"])
