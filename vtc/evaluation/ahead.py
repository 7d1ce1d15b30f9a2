"""Batches read ahead of the device: pictures decoded and preprocessed by threads while the model works on others.

What comes out is what reading one batch after the other gives, in the same order. A batch whose pictures are so many
that several of its kind would not fit into memory is left to whoever answers it.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from vtc.data.pictures import IN_FLIGHT
from vtc.evaluation.prompts import Prompt, Room

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone

AHEAD = 3  # batches that are read, or being read, beyond the one that is answered
SHARE = IN_FLIGHT // (AHEAD + 1)  # pixels of a batch that is read ahead

T = TypeVar("T")


class TooLarge(Exception):
    """A batch that isn't read ahead."""


@dataclass
class Ready:
    """A batch, or a part of one, that can be answered.

    Attributes:
        prompts: in their order; failed: request → why it has none.
        inputs: the prompts as the model takes them, on its device; None: still to be made.
    """

    prompts: list[Prompt] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    inputs: Any = None


class Preprocessor:
    """A backbone's preprocessing, for several threads at a time: each has a processor of its own, since tokenizers are
    not made for more than one."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._own = threading.local()

    def inputs(self, prompts: Sequence[Prompt]) -> Any:
        """See `Parts.inputs`; None where it can't be done here, whose reason shows when the batch is answered."""
        try:
            if not hasattr(self._own, "backbone"):
                self._own.backbone = copy.copy(self.backbone)
                self._own.backbone.processor = copy.deepcopy(self.backbone.processor)
            return inputs_of(self._own.backbone, prompts)
        except Exception:
            return None


def inputs_of(backbone: Backbone, prompts: Sequence[Prompt]) -> Any:
    """Prompts as the model takes them."""
    videos = [p.videos for p in prompts] if any(p.videos for p in prompts) else None
    return backbone.inputs([p.text for p in prompts], [p.images for p in prompts], videos)


def in_order(
    batches: Sequence[T], read: Callable[[T], Ready], threads: int
) -> Generator[tuple[T, Ready | None], None, None]:
    """Each batch with what `read` makes of it, in their order; None of one that was too large to be read ahead.

    Args:
        read: called in one of the threads; it raises `TooLarge`.
        threads: 0: none, and nothing is read.
    """
    if not threads:
        yield from ((batch, None) for batch in batches)
        return
    pending: deque[tuple[T, Future[Ready]]] = deque()
    waiting = iter(batches)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="pictures")
    try:
        while True:
            for batch in waiting:
                pending.append((batch, pool.submit(read, batch)))
                if len(pending) > AHEAD:
                    break
            if not pending:
                return
            batch, future = pending.popleft()
            ready = None
            with contextlib.suppress(TooLarge):
                ready = future.result()
            yield batch, ready
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def share_of_memory() -> Room:
    """Room for the pixels of a batch that is read ahead.

    Raises:
        TooLarge: its pictures have more than `SHARE` pixels (when it is called).
    """
    held = 0

    def room(pixels: int) -> None:
        nonlocal held
        held += pixels
        if held > SHARE:
            raise TooLarge

    return room
