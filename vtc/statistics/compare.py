"""Two finished runs task by task: which is better, and is it chance?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vtc.statistics import scores as statistics


def compare(a: str | Path, b: str | Path) -> dict[str, dict[str, Any]]:
    """Paired comparison of two result files (or their folders), on the samples that both scored.

    Returns:
        task → `{n, a, b, difference, p_value}`, and under `understanding`, `discriminative` and `all` the same for the
        means over those tasks, as shares of their full scores. `p_value` is the exact McNemar test's for 0/1 scores,
        else that of 9,999 sign flips of the paired differences, each weighted by what it adds to the mean. Tasks
        without sample scores are left out.
    """
    from vtc import results

    rows = [row for result in (a, b) for row in results.load(result)["scores"]]
    return compare_samples(results.samples(a), results.samples(b), rows)


def compare_samples(a: Any, b: Any, rows: Sequence[Mapping[str, Any]] = ()) -> dict[str, dict[str, Any]]:
    """`compare` on two frames of samples (columns task, id, score, stratum).

    Args:
        rows: those of the results' `scores`, which name the group and the full score of a task; without, a score is a
            share already.
    """
    groups = {row["task"]: row.get("group") for row in rows}
    scales = {row["task"]: float(row.get("scale") or 1.0) for row in rows}
    both = a[["task", "id", "score", "stratum"]].merge(
        b[["task", "id", "score"]], on=["task", "id"], suffixes=("_a", "_b")
    )
    both = both.dropna(subset=["score_a", "score_b"])
    out: dict[str, dict[str, Any]] = {}
    weighted: dict[str, np.ndarray] = {}
    for task, pairs in both.groupby("task", sort=False):
        x, y = pairs["score_a"].to_numpy(float), pairs["score_b"].to_numpy(float)
        strata = pairs["stratum"].fillna("").astype(str).tolist()
        out[str(task)] = {
            "n": len(pairs),
            "a": statistics.mean(x, strata),
            "b": statistics.mean(y, strata),
            "p_value": statistics.paired(x, y, strata),
        }
        weighted[str(task)] = statistics.weights(strata) * (x - y) / scales.get(str(task), 1.0)
    tasks = list(out)
    for name, members in (
        ("understanding", [t for t in tasks if groups.get(t) == "understanding"]),
        ("discriminative", [t for t in tasks if groups.get(t) == "discriminative"]),
        ("all", tasks),
    ):
        if members:
            differences = np.concatenate([weighted[t] for t in members]) / len(members)
            out[name] = {
                "n": sum(out[t]["n"] for t in members),
                "a": float(np.mean([out[t]["a"] / scales.get(t, 1.0) for t in members])),
                "b": float(np.mean([out[t]["b"] / scales.get(t, 1.0) for t in members])),
                "p_value": statistics.sign_flips(differences),
            }
    for row in out.values():
        row["difference"] = row["a"] - row["b"]
    return out
