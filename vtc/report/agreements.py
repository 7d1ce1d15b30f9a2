"""How much of what a run answers is what the uncompressed backbone answers, where its result doesn't state it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vtc import results
from vtc.report.runs import Run
from vtc.statistics import agreement

COLUMNS = ["task", "id", "prediction", "error"]


def complete(runs: Sequence[Run]) -> None:
    """Sets `agreements` of those runs of a table that don't state theirs, where they and the baseline that they name
    keep their answers (`vtc.statistics.agreement`)."""
    baselines = {run.id: run for run in runs if run.is_baseline}
    vocabulary: dict[str, int] = {}
    words: dict[Run, np.ndarray | None] = {}
    for run in runs:
        if run.is_baseline:
            run.agreements = dict.fromkeys(run.rows, 1.0)
            continue
        named = (run.result.get("baseline") or {}).get("id")
        base = baselines.get(str(named)) or (next(iter(baselines.values())) if len(baselines) == 1 else None)
        if base is None or run.agreement() is not None or run.questions is None or base.questions is None:
            continue
        if base not in words:
            words[base] = _words(base, vocabulary)
        mine, theirs = _words(run, vocabulary), words[base]
        if mine is None or theirs is None:
            continue
        if run.questions is base.questions and len(mine) == len(theirs):
            run.agreements = _shares(run, mine, theirs)
        else:
            run.agreements = agreement(*(results.samples(one.path, [*COLUMNS, "target"]) for one in (run, base)))


def _words(run: Run, vocabulary: dict[str, int]) -> np.ndarray | None:
    """A number for each answer, the same for the same words, whatever their case and spacing; -1 where there is none.
    None where the answers are not kept."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(run.path.with_name(results.SAMPLES)) as file:
            names = file.schema_arrow.names
            if "prediction" not in names:
                return None
            columns = [name for name in ("prediction", "error") if name in names]
            table = file.read(columns=columns, use_threads=False).combine_chunks()
    except (OSError, ValueError):
        return None
    encoded = table["prediction"].cast("string").fill_null("").combine_chunks().dictionary_encode()
    said = [" ".join(text.split()).casefold() for text in encoded.dictionary.to_pylist()]
    codes = np.array([vocabulary.setdefault(text, len(vocabulary)) for text in said], dtype=np.int64)
    out = codes[encoded.indices.to_numpy(zero_copy_only=False)] if len(codes) else np.zeros(0, dtype=np.int64)
    if "error" in names:
        out = np.where(table["error"].is_null().to_numpy(), out, -1)
    return out


def _shares(run: Run, mine: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    questions: Any = run.questions
    known = (mine >= 0) & (theirs >= 0)
    shares = {}
    tasks = np.array([task for task, _ in questions.cells], dtype=object)[questions.cell_of[known]]
    for task in dict.fromkeys(tasks.tolist()):
        members = tasks == task
        shares[str(task)] = float((mine[known][members] == theirs[known][members]).mean())
    return shares
