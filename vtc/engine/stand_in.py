"""Taking the place of an attribute of one instance for a while, as of a module's `forward`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any


def stand_in(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Puts `value` in the place of an attribute until the stack closes.

    What the instance itself had there comes back: accelerate puts a `forward` of its own on modules.
    """
    own = owner.__dict__.get(name)
    stack.callback(lambda: owner.__dict__.pop(name, None) if own is None else setattr(owner, name, own))
    setattr(owner, name, value)
