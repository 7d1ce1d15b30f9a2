"""Compression methods, one file each; `build` makes one by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vtc.errors import UserError, nearest
from vtc.registry import methods, parts

if TYPE_CHECKING:
    from vtc.interface import BackboneShape, Compressor


PART_BUDGETS = ("tokens", "ratio")  # that a part of a composition may have, beside those of its method


def options_of(name: str) -> dict[str, Any]:
    """Options of a method and their defaults (what its class takes beside `tokens` and `shape`).

    Of a composition: those of each part, by the part's key. The last part's budget is the composition's own.
    """
    members = parts(name)
    if len(members) > 1:
        last = [*members][-1]
        return {
            key: (dict.fromkeys(PART_BUDGETS) if key != last else {}) | options_of(part)
            for key, part in members.items()
        }
    parameters = inspect.signature(methods.get(name).__init__).parameters
    return {k: p.default for k, p in parameters.items() if k not in ("self", "tokens", "shape")}


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raises `UserError` for an option that method `name` doesn't have, or one that it needs and wasn't given."""
    known = options_of(name)
    _check(name, options, known, "method")
    members = parts(name)
    if len(members) > 1:
        for key, part in members.items():
            own = options.get(key, {})
            if not isinstance(own, Mapping):
                raise UserError(
                    f"method.{key}={own}: {key} is a part of {name}; its options are method.{key}.<option>=…"
                )
            _check(part, own, known[key], f"method.{key}")


def _check(name: str, options: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    for key in options:
        if key not in known:
            if not known:
                raise UserError(f"{where}.{key}={options[key]}: {name} takes no options")
            allowed = f"allowed: {', '.join(sorted(known))}{nearest(key, known)}"
            raise UserError(f"{where}.{key}={options[key]}: {name} has no such option; {allowed}")
    for key, default in known.items():
        if default is inspect.Parameter.empty and key not in options:
            raise UserError(f"{where}.{key}: {name} needs it")


def build(name: str, tokens: int | None, shape: BackboneShape, **options: Any) -> Compressor:
    """The method `name`, leaving `tokens` visual tokens per image of a backbone of `shape`.

    Args:
        tokens: None takes the method's default (often: everything).
        options: keyword arguments of its class. Layer numbers are the papers' (`vtc.interface.scaled_layer`).

    Raises:
        UserError: unknown method or option, a budget or layer that it can't meet.
    """
    cls = methods.get(name)
    check_options(name, options)
    if tokens is None:
        tokens = cls.default_tokens(shape, **options)
    elif tokens not in cls.offers(shape, **options) and shape.visual_tokens is not None:
        from vtc.budget import Budget

        Budget(tokens=tokens).resolve(cls, shape, options)  # raises, with what it offers
    method = cls(tokens=tokens, shape=shape, **options)
    method.name = name
    method.options = dict(options)
    return method
