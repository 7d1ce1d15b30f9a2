"""Whether what a method gives is what its verb asks for: checked where it is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vtc.errors import NotFinite, UserError


class MethodError(Exception):
    """A method gave what can't be used. Whoever runs it says whose it is, and raises `kind` of these words."""

    def __init__(self, words: str, kind: type[UserError]) -> None:
        super().__init__(words)
        self.kind = kind


def require(what: str, values: Any, shape: Sequence[int | None], read: Tensor | bool = False) -> None:
    """Refuses whatever isn't a tensor of this shape, or isn't finite where it is read.

    Args:
        what: `a score`, as messages call it.
        shape: None: any size.
        read: which of the values must be finite, a mask of this shape or all of them; False: whether they are is seen
            in what comes of them.

    Raises:
        MethodError: it becomes a `UserError`, or `NotFinite`.
    """
    sizes = list(values.shape) if isinstance(values, Tensor) else []
    if len(sizes) != len(shape) or any(m not in (None, n) for n, m in zip(sizes, shape, strict=True)):
        needed = ", ".join("any" if size is None else str(size) for size in shape)
        got = f"shape {sizes}" if isinstance(values, Tensor) else f"type {type(values).__name__}"
        raise MethodError(f"gives {what} of {got}; needed: a tensor of shape [{needed}]", UserError)
    if read is not False and not bool((values if read is True else values.masked_fill(~read, 0)).isfinite().all()):
        raise MethodError(f"gives {what} that isn't finite", NotFinite)
