"""Scores of the samples beside a result. Runs on the same questions share one index of them, made once."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vtc import results
from vtc.allowed import brief
from vtc.statistics import by_question
from vtc.statistics.compare import CELL, QUESTION

MOST = 5_000_000  # samples of a run: a small file can state billions


@dataclass(eq=False)
class Questions:
    """The questions of one or many runs.

    Attributes:
        index: of `vtc.statistics.by_question`.
        cells: a task and one of its strata each; cell_of: number of each question's, `[questions]`.
    """

    index: Any
    cells: list[tuple[str, str]] = field(init=False)
    cell_of: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        codes = [self.index.codes[self.index.names.index(level)].astype(np.int64) for level in CELL]
        names = [self.index.levels[self.index.names.index(level)] for level in CELL]
        both, self.cell_of = np.unique(codes[0] * len(names[1]) + codes[1], return_inverse=True)
        self.cells = [(names[0][at // len(names[1])], names[1][at % len(names[1])]) for at in both.tolist()]

    def means(self, scores: np.ndarray) -> dict[str, tuple[int, float]]:
        """Task → number of its questions that have a score, and their mean, each stratum counting alike."""
        known = ~np.isnan(scores)
        counts = np.bincount(self.cell_of[known], minlength=len(self.cells))
        sums = np.bincount(self.cell_of[known], weights=scores[known], minlength=len(self.cells))
        strata: dict[str, list[tuple[int, float]]] = {}
        for (task, _), count, total in zip(self.cells, counts.tolist(), sums.tolist(), strict=True):
            if count:
                strata.setdefault(task, []).append((count, total / count))
        return {t: (sum(n for n, _ in s), sum(mean for _, mean in s) / len(s)) for t, s in strata.items()}


_SHARED: dict[bytes, Questions] = {}  # hash of the columns `QUESTION` → what runs on them hold in common


def read_scores(result: Path) -> tuple[Any, Questions] | None:
    """The scores of the samples beside a result, a series over its questions; None where there are none.

    Raises:
        ValueError: they are damaged, or say of a question twice what its score is.
    """
    file = result.with_name(results.SAMPLES)
    if not os.path.lexists(file):
        return None
    if not file.is_file():
        raise ValueError(f"{file}: no regular file")
    try:
        scores, questions = _read(file)
    except Exception as error:  # damaged bytes come out of pyarrow and pandas as errors of any kind
        raise ValueError(f"{file}: can't be read ({brief(error, 100)})") from error
    if not scores.index.is_unique:
        raise ValueError(f"{file}: question {'/'.join(scores.index[scores.index.duplicated()][0][:2])} is there twice")
    if np.isinf(scores.to_numpy()).any():
        raise ValueError(f"{file}: a score is not finite")
    return scores, questions


def _read(file: Path) -> tuple[Any, Questions]:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        if (rows := opened.metadata.num_rows) > MOST:
            raise ValueError(f"{rows:,} samples; at most {MOST:,}")
        named = [name for name in (*QUESTION, "score") if name in opened.schema_arrow.names]
        table = opened.read(columns=named, use_threads=False)
    key = _key(table)
    known = _SHARED.get(key) if key is not None else None
    if known is None or not pa.types.is_floating(table.schema.field("score").type):
        scores = by_question(results.samples(file, named))
        known = known or Questions(scores.index)
        if key is not None:
            _SHARED[key] = known
        return pd.Series(scores.to_numpy(), known.index), known
    return pd.Series(table["score"].to_numpy().astype(float), known.index), known


def _key(table: Any) -> bytes | None:
    """Hash of which questions a table's rows are of; None where their columns are of a kind that isn't hashed here."""
    import pyarrow as pa

    state = hashlib.sha256()
    for name in QUESTION:
        if name not in table.schema.names:
            continue
        kind = table.schema.field(name).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
            return None
        column = pa.concat_arrays(table[name].chunks) if table[name].num_chunks else pa.array([], kind)
        state.update(f"{name} {kind} {len(column)} {column.offset}\n".encode())
        for buffer in column.buffers():
            state.update(b"-" if buffer is None else len(memoryview(buffer)).to_bytes(8, "big"))
            if buffer is not None:
                state.update(memoryview(buffer))
    return state.digest()
