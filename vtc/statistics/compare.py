"""Two finished runs task by task: which is better, and is it chance?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vtc.statistics import scores as statistics
from vtc.statistics.differences import contributions

QUESTION = ["task", "id", "target", "cluster", "stratum"]  # columns of samples that say which question a row is of
OPTIONAL = ("target", "cluster")  # … of which not every run states these
CELL = ("task", "stratum")  # … and within which samples vary


def compare(a: str | Path, b: str | Path) -> dict[str, dict[str, Any]]:
    """Paired comparison of two result files (or their folders), on the samples that both scored.

    A sample is paired where task, id and target are the same, and where both results state the task's data, those too.
    Samples of one `cluster` are flipped as one.

    Returns:
        task → `{n, a, b, difference, p_value}`, and under `understanding`, `discriminative` and `all` the same for the
        means over those tasks, as shares of their full scores. `p_value` is the exact McNemar test's for 0/1 scores,
        else that of sign flips of the paired differences, each weighted by what it adds to the mean. Tasks without
        sample scores are left out.
    """
    from vtc import results

    rows = [{row["task"]: row for row in results.load(result)["scores"]} for result in (a, b)]
    stated = [{row.get("data") for side in rows if (row := side.get(task)) and row.get("data")} for task in rows[0]]
    other = [task for task, data in zip(rows[0], stated, strict=True) if len(data) > 1]
    x, y = (frame[~frame["task"].isin(other)] for frame in map(results.samples, (a, b)))
    return compare_samples(x, y, [row for side in rows for row in side.values()])


def compare_samples(a: Any, b: Any, rows: Sequence[Mapping[str, Any]] = ()) -> dict[str, dict[str, Any]]:
    """`compare` on two frames of samples (columns task, id, score, and where known target and stratum).

    Args:
        rows: those of the results' `scores`, which name the group and the full score of a task; without, a score is a
            share already.
    """
    groups = {row["task"]: row.get("group") for row in rows}
    scales = {row["task"]: float(row.get("scale") or 1.0) for row in rows}
    pairs = side_by_side([by_question(a), by_question(b)]).dropna()
    out: dict[str, dict[str, Any]] = {}
    for task, of_task in pairs.groupby(level="task", sort=False):
        x, y = of_task[0].to_numpy(float), of_task[1].to_numpy(float)
        strata = of_task.index.get_level_values("stratum").tolist()
        means = {"a": statistics.mean(x, strata), "b": statistics.mean(y, strata)}
        p_value = statistics.paired(x, y, strata, clusters(of_task.index))
        out[str(task)] = {"n": len(of_task), **means, "p_value": p_value}
    tasks = list(out)
    for name in ("understanding", "discriminative", "all"):
        members = [t for t in tasks if name in ("all", groups.get(t))]
        if members:
            of_group = pairs[pairs.index.get_level_values("task").isin(members)]
            differences = (of_group[0] - of_group[1]).to_numpy(float)
            out[name] = {
                "n": len(of_group),
                "a": float(np.mean([out[t]["a"] / scales.get(t, 1.0) for t in members])),
                "b": float(np.mean([out[t]["b"] / scales.get(t, 1.0) for t in members])),
                "p_value": statistics.sign_flips(shares(differences[None], of_group.index, scales)[0][0]),
            }
    for row in out.values():
        row["difference"] = row["a"] - row["b"]
    return out


def agreement(a: Any, b: Any) -> dict[str, float]:
    """Task → share of the questions that two runs answer in the same words, whatever their case and spacing, right or
    wrong (the loyalty of a compressed model to the uncompressed one).

    Args:
        a, b: frames of samples with task, id, prediction, and where known the target; samples that could not be
            answered are in none of the shares.
    """
    keys = [key for key in ("task", "id", "target") if key in a and key in b]
    sides = []
    for frame in (a, b):
        known = frame[frame["error"].isna()] if "error" in frame else frame
        words = known["prediction"].fillna("").astype(str).str.split().str.join(" ").str.casefold()
        sides.append(known[keys].astype(str).assign(words=words))
    both = sides[0].merge(sides[1], on=keys)
    same = (both["words_x"] == both["words_y"]).groupby(both["task"], sort=False).mean()
    return {str(task): float(share) for task, share in same.items()}


def by_question(frame: Any) -> Any:
    """Scores of a run as a series: a row a question (task, id, target where the frame has any, stratum).

    Raises:
        KeyError, ValueError: a column is missing, or a score is no number.
    """
    import pandas as pd

    known = [c for c in QUESTION if c not in OPTIONAL or (c in frame and frame[c].fillna("").ne("").any())]
    keys = frame[["task", "id"]].join(frame.reindex(columns=known[2:])).fillna("").astype(str)
    return pd.Series(pd.to_numeric(frame["score"]).to_numpy(float), pd.MultiIndex.from_frame(keys))


def side_by_side(runs: Sequence[Any]) -> Any:
    """Scores of several runs (`by_question`) in one frame, `[questions, runs]`: NaN where a run has none.

    The target, and the cluster, are part of a question where all runs have one.
    """
    import pandas as pd

    for level in OPTIONAL:
        if not all(level in run.index.names for run in runs):
            runs = [run.droplevel(level) if level in run.index.names else run for run in runs]
    return pd.concat(runs, axis=1, keys=range(len(runs)))


def cells(questions: Any) -> list[str]:
    """The task and the stratum of each question, within which samples vary, `[questions]`."""
    return [f"{task}\n{stratum}" for task, stratum in zip(*map(questions.get_level_values, CELL), strict=True)]


def clusters(questions: Any) -> list[str] | None:
    """Which questions belong together, by any name, `[questions]`; None where each is its own."""
    if "cluster" not in questions.names:
        return None
    ids, named = (questions.get_level_values(level) for level in ("id", "cluster"))
    return [f"cluster {cluster}" if cluster else f"id {own}" for own, cluster in zip(ids, named, strict=True)]


def shares(table: np.ndarray, questions: Any, scales: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """What each cluster of questions adds to the means over the tasks, and the number of its cell, as `contributions`.

    Args:
        table: `[runs, questions]`.
    """
    return contributions(table, question_weights(questions, scales), cells(questions), clusters(questions))


def question_weights(questions: Any, scales: Mapping[str, float]) -> np.ndarray:
    """What each question (an index, as of `by_question`) adds to the mean over the tasks, as shares of their full
    scores, `[questions]`."""
    tasks, strata = (questions.get_level_values(level) for level in ("task", "stratum"))
    out = np.zeros(len(questions))
    names = tasks.unique()
    for task in names:
        members = np.flatnonzero(tasks == task)
        out[members] = statistics.weights(strata[members].tolist()) / (scales.get(task, 1.0) * len(names))
    return out
