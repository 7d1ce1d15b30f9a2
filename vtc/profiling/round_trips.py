"""Counts the moments in which a program waits for the device: where a number of a tensor decides what is done next.

On a CPU nothing waits, so that what would wait on an accelerator can be counted anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {
    "equal",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
    "_unique2",
    "repeat_interleave",
}
READ = ("item", "__bool__", "__int__", "__float__", "__index__", "tolist", "cpu")  # of a tensor, on the host


class RoundTrips(TorchDispatchMode):
    """Counts while it is open.

    Attributes:
        counts: operation → how often it would have waited.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self.counts.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING and not (name == "repeat_interleave" and (kwargs or {}).get("output_size") is not None):
            self.counts[name] += 1
        elif name in ("index", "index_put", "index_put_") and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            self.counts[f"{name} by a mask"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def round_trips() -> Iterator[RoundTrips]:
    """Counts them meanwhile."""
    mode, inside = RoundTrips(), [False]

    def reading(name: str, original: Any) -> Any:
        def read(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if inside[0]:  # one that is made of another
                return original(tensor, *args, **kwargs)
            mode.counts[name] += 1
            inside[0] = True
            try:
                return original(tensor, *args, **kwargs)
            finally:
                inside[0] = False

        return read

    with ExitStack() as stack:
        for name in READ:
            original = getattr(Tensor, name)
            stack.callback(setattr, Tensor, name, original)
            setattr(Tensor, name, reading(name, original))
        stack.enter_context(mode)
        yield mode
