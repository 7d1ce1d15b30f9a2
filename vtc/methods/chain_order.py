"""What methods that stand one behind the other may do to each other: refusals, and what they share of the tower."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from vtc.errors import UserError
from vtc.interface import BackboneShape, TowerUse
from vtc.methods.chain_budgets import Step


def check_order(name: str, steps: Sequence[Step], shape: BackboneShape) -> None:
    """Refuses parts that can't work at their place.

    Raises:
        UserError: a part that acts before its predecessor, reads what the predecessor changes, or shares a row's budget
            out and isn't the last.
    """
    until, acted, uneven = 0, "", ""
    for key, part in steps:
        first = min(part.layers(), default=until)
        if first < until:
            raise UserError(
                f"method={name}: {key} acts before layer {first} (of {shape.depth}), {acted} before it in the order "
                f"only at layer {until}; put {key} first, or set method.{key}.layer"
            )
        if acted and any(layer < until for layer in part.probes()):
            raise UserError(
                f"method={name}: {key} reads attention of layer {min(part.probes())} (of {shape.depth}), "
                f"and {acted} changes the tokens behind it, at layer {until}; set method.{key}.layer later"
            )
        if part.tower() is not None and _patches(part.shape) != _patches(shape):
            raise UserError(
                f"method={name}: {key} reads the vision tower patch by patch, and {acted} has already "
                f"chosen among the patches; put {key} first"
            )
        if uneven:
            raise UserError(
                f"method={name}: {uneven} leaves images of one row with different numbers of tokens, and "
                f"{key} has a budget for each image; put {uneven} last"
            )
        uneven = key if part.across_images else ""
        if part.layers():
            until, acted = max(part.layers()), key


def together(name: str, uses: Mapping[str, TowerUse]) -> TowerUse:
    """What the parts of `name` ask of the tower, as one: sets are united, of everything else one part may ask.

    Raises:
        UserError: two parts that ask for different things.
    """
    union: dict[str, Any] = {}
    for field in dataclasses.fields(TowerUse):
        nothing = getattr(TowerUse(), field.name)
        values = {key: getattr(use, field.name) for key, use in uses.items()}
        values = {key: v for key, v in values.items() if v is not nothing and (nothing is None or v != nothing)}
        if isinstance(nothing, frozenset):
            union[field.name] = nothing.union(*values.values())
        elif any(v is not [*values.values()][0] for v in values.values()):
            raise UserError(f"method={name}: {' and '.join(values)} both set the vision tower's {field.name}")
        elif values:
            union[field.name] = [*values.values()][0]
    return TowerUse(**union)


def _patches(shape: BackboneShape) -> float | None:
    """Visual tokens for each patch of the tower; None where their number isn't known."""
    return None if shape.visual_tokens is None else shape.visual_tokens / shape.vision.grid_side**2
