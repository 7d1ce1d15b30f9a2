"""What decides the numbers of a run: said where a setting is declared, gathered and hashed here.

Three questions are asked of a setting. Does it decide the WEIGHTS that a training ends with, the SCORES of a run, its
COSTS? A hash over all settings that decide one of them names a training, a run or a measurement, so that what is
finished is found again, and what would come out otherwise is not mistaken for it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from enum import Flag, auto
from pathlib import Path
from typing import Any

from vtc.allowed import Allowed


class Decides(Flag):
    """What a setting decides."""

    NOTHING = 0
    WEIGHTS = auto()
    SCORES = auto()
    COSTS = auto()


NOTHING, WEIGHTS, SCORES, COSTS = Decides.NOTHING, Decides.WEIGHTS, Decides.SCORES, Decides.COSTS
NUMBERS = SCORES | COSTS
EVERYTHING = WEIGHTS | SCORES | COSTS


_SIMPLE = frozenset({str, bool, int, type(None)})


def setting(
    default: Any = dataclasses.MISSING,
    decides: Decides = EVERYTHING,
    allowed: Allowed | None = None,
    later: bool = False,
) -> Any:
    """A field of a dataclass of settings.

    Args:
        default: its value where none is given; a mapping or a list is copied for each object.
        decides: what else would come out with another value.
        allowed: what it may hold.
        later: results were made before there was such a setting, as its default has it: at its default it decides
            nothing, so that they are found again.
    """
    metadata = {"decides": decides, "allowed": allowed, "later": later}
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def deciding(settings: Any, what: Decides) -> dict[str, Any]:
    """The fields of a dataclass of settings that decide `what`, those of dataclasses in it likewise, as plain values.

    A field that was declared without `setting` decides everything.
    """
    chosen = {}
    for field in dataclasses.fields(settings):
        if field.metadata.get("later") and getattr(settings, field.name) == field.default:
            continue
        if field.metadata.get("decides", EVERYTHING) & what:
            chosen[field.name] = _plain(getattr(settings, field.name), what)
    return chosen


def _plain(value: Any, what: Decides) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return deciding(value, what)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, what) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        if _SIMPLE.issuperset(map(type, value)):  # long lists of numbers take their time one by one
            return list(value)
        return [_plain(inner, what) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return f"float {value}"  # JSON has no word for it, and null means something else
    if isinstance(value, Path):
        return value.as_posix()
    return value


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted keys with their values, to say in which of them two differ."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def digest(value: Any) -> str:
    """Hash of plain values: of the same content the same, whatever the order of its keys."""
    text = json.dumps(_plain(value, EVERYTHING), sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()


def hash_bytes(parts: Iterable[bytes | str]) -> str:
    """Hash of a sequence of texts and byte strings; where one ends and the next begins counts."""
    state = hashlib.sha256()
    for part in parts:
        part = part.encode(errors="backslashreplace") if isinstance(part, str) else part  # no UTF-8, in a file's name
        state.update(len(part).to_bytes(8, "big") + part)
    return state.hexdigest()
