"""Batches loaded ahead by worker processes: the same ones, in the same order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch.utils.data import DataLoader

from vtc.data.training.batch import Batch, Part
from vtc.data.training.source import FileSource
from vtc.errors import UserError


class Prefetched:
    """`source.batch` of the steps first … last-1, each in these parts, loaded ahead.

    Args:
        parts: those of this process, in the order in which they are read: one for each micro-batch.
        workers: processes; 0 loads each batch when it is read.
        context: how processes start: fork, spawn or forkserver; None: Python's default.
    """

    def __init__(
        self,
        source: FileSource,
        parts: Sequence[Part],
        first: int,
        last: int,
        workers: int = 0,
        context: str | None = None,
    ) -> None:
        self.source, self.parts, self.first, self.last = source, list(parts), first, last
        self.workers, self.context = workers, context
        self._batches: Iterator[Batch] | None = None
        self._next = 0

    def __iter__(self) -> Iterator[Batch]:
        """Every step, and in it every part.

        Raises:
            UserError: as `FileSource.batch`.
        """
        return self._from(0)

    def batch(self, step: int, part: Part) -> Batch:
        """What `source.batch(step, part)` is; loaded ahead as long as steps and parts are read in their order."""
        if part not in self.parts or not self.first <= step < self.last:
            return self.source.batch(step, part)
        number = (step - self.first) * len(self.parts) + self.parts.index(part)
        if self._batches is None or number != self._next:
            self._batches = self._from(number)
        self._next = number + 1
        return next(self._batches)

    def _from(self, begin: int) -> Iterator[Batch]:
        loader: DataLoader = DataLoader(
            range(begin, (self.last - self.first) * len(self.parts)),  # type: ignore[arg-type]
            batch_size=None,
            collate_fn=partial(_load, self.source, self.parts, self.first),
            num_workers=self.workers,
            generator=torch.Generator(),  # its own: the global one is the training's
            multiprocessing_context=self.context if self.workers else None,
        )
        for batch, skipped in loader:
            self.source.skipped.update(skipped)
            if isinstance(batch, UserError):
                raise batch
            yield batch


def _load(
    source: FileSource, parts: Sequence[Part], first: int, number: int
) -> tuple[Batch | UserError, dict[tuple[str, int], str]]:
    """A batch by its number, or the mistake that a worker met, and the samples that were skipped for the first time."""
    step, part = divmod(number, len(parts))
    known = len(source.skipped)
    result: Batch | UserError
    try:
        result = source.batch(first + step, parts[part])
    except UserError as error:
        result = error
    return result, dict(list(source.skipped.reasons.items())[known:])
