"""Compression methods, one file each; `make` and `build` make one by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vtc.budget import Budget
from vtc.interface import BackboneShape, Compressor
from vtc.registry import PART_BUDGETS, methods, parts


def make(
    name: str, tokens: int | None | Callable[[Compressor], int | None], shape: BackboneShape, **options: Any
) -> Compressor:
    """The method `name` without parameters, leaving `tokens` visual tokens per image of a backbone of `shape`.

    Args:
        tokens: None: the method's default (often: everything); see `Compressor`.
        options: of its class. Layer numbers are the papers' (`vtc.interface.scaled_layer`).

    Raises:
        UserError: unknown method or option, a budget, a layer or a backbone that it can't work with.
    """
    cls = methods.get(name)
    if isinstance(tokens, int):
        tokens = Budget(tokens=tokens).resolve
    method = cls(tokens, shape, **options)
    method.name = name
    return method


def build(
    name: str, tokens: int | None | Callable[[Compressor], int | None], shape: BackboneShape, **options: Any
) -> Compressor:
    """The same with its untrained parameters."""
    return make(name, tokens, shape, **options).build()


def options_of(name: str) -> dict[str, Any]:
    """Options of a method and their defaults.

    Of a composition: those of each part, by the part's key. The last part's budget is the composition's own.
    """
    members = parts(name)
    if len(members) > 1:
        last = [*members][-1]
        return {
            key: (dict.fromkeys(PART_BUDGETS) if key != last else {}) | options_of(part)
            for key, part in members.items()
        }
    return {key: option.default for key, option in methods.get(name).declared_options().items()}
