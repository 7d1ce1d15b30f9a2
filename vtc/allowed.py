"""What a setting or an option may hold, in words for the user and as a check."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vtc.errors import UserError, nearest

LONGEST = 120  # characters of a value in an error
WIDEST = 2**63 - 1  # the largest whole number that torch, numpy and files can hold


@dataclass(frozen=True)
class Allowed:
    """A kind of value.

    Attributes:
        words: what is allowed, as an error says it: "a whole number from 1 on".
        accepts: whether a value is of that kind.
        optional: whether None (`null` on the command line) is allowed too.
    """

    words: str
    accepts: Callable[[Any], bool]
    optional: bool = False

    def check(self, key: str, value: Any) -> None:
        """Refuses a value by the key that holds it.

        Raises:
            UserError: `<key>=<value>: allowed: <words>`, with the nearest match for a misspelt word.
        """
        if (value is None and self.optional) or (value is not None and self.accepts(value)):
            return
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else brief(value)
        close = nearest(shown, self.words.split(", ")) if isinstance(value, str) else ""
        raise UserError(f"{key}={shown}: allowed: {self.words}{close}")

    def or_null(self) -> Allowed:
        """The same, or None."""
        return Allowed(self.words, self.accepts, optional=True)


def brief(value: Any, most: int = LONGEST) -> str:
    """A value as a line can show it: of `most` characters, what can't be printed escaped."""
    words = " ".join(str(value).split())
    words = words if words.isprintable() else ascii(words)[1:-1]
    return words if len(words) <= most else f"{words[:most]}…"


def is_number(value: Any) -> bool:
    """A finite number, and no whole one beyond floating point's; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def whole(least: int, most: int | None = None, limit: int = WIDEST) -> Allowed:
    """Whole numbers from `least` on, or up to `most`; `limit`: beyond which nobody means it."""
    words = f"a whole number from {least} " + ("on" if most is None else f"to {most}")
    words += f", {limit} at most" if limit < WIDEST else ""

    def accepts(value: Any) -> bool:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        return is_whole and least <= value <= (limit if most is None else most)

    return Allowed(words, accepts)


def number(
    words: str = "a number", above: float = -math.inf, least: float = -math.inf, most: float = math.inf
) -> Allowed:
    """Finite numbers above `above`, from `least` to `most`."""
    return Allowed(words, lambda v: is_number(v) and v > above and least <= v <= most)


def one_of(*names: Any) -> Allowed:
    """Some values; True is none of 1."""
    words = ", ".join("null" if n is None else str(n).lower() if isinstance(n, bool) else str(n) for n in names)
    return Allowed(words, lambda v: any(v is n or (v == n and type(v) is type(n)) for n in names), None in names)


def line(words: str = "a text of one line", most: int = 300) -> Allowed:
    """Texts that can be shown anywhere: no control characters, no halves of a character, `most` characters."""
    return Allowed(words, lambda v: isinstance(v, str) and 0 < len(v) <= most and v.isprintable())


def text(words: str = "a text") -> Allowed:
    """Texts that aren't empty."""
    return Allowed(words, lambda v: isinstance(v, str) and bool(v))


def several(words: str, each: Allowed, count: int | None = None, least: int = 0) -> Allowed:
    """Lists of values of one kind, `count` of them where it is said, or at least so many."""

    def accepts(value: Any) -> bool:
        if not isinstance(value, (list, tuple)) or count not in (None, len(value)):
            return False
        return len(value) >= least and all(map(each.accepts, value))

    return Allowed(words, accepts)


def mapping(words: str, each: Allowed | None = None) -> Allowed:
    """Names with a value each, of one kind where it is said."""
    return Allowed(words, lambda v: isinstance(v, Mapping) and (each is None or all(map(each.accepts, v.values()))))


def anything() -> Allowed:
    """Whatever is checked elsewhere, by who knows more."""
    return Allowed("anything", lambda v: True, optional=True)


SHARE = number("more than 0, at most 1", above=0, most=1)
BOOLEAN = one_of(True, False)
SEED = whole(0, 2**32 - 1)  # numpy's seeds have 32 bits
TEXT = text().or_null()
