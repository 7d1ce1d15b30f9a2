"""Two finished runs task by task: which is better, and is it chance?"""

from __future__ import annotations

from collections.abc import Mapping
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
    groups = {row["task"]: row["group"] for row in rows}
    scales = {row["task"]: float(row.get("scale") or 1.0) for row in rows}
    return compare_samples(results.samples(a), results.samples(b), groups, scales)


def compare_samples(
    a: Any, b: Any, groups: Mapping[str, str], scales: Mapping[str, float] | None = None
) -> dict[str, dict[str, Any]]:
    """`compare` on two frames of samples (columns task, id, score, stratum).

    Args:
        groups: task → group.
        scales: task → its full score; what is not in it is a share already.
    """
    scales = scales or {}
    both = a[["task", "id", "score", "stratum"]].merge(
        b[["task", "id", "score"]], on=["task", "id"], suffixes=("_a", "_b")
    )
    both = both.dropna(subset=["score_a", "score_b"])
    out: dict[str, dict[str, Any]] = {}
    weighted: dict[str, np.ndarray] = {}
    for task, rows in both.groupby("task", sort=False):
        x, y = rows["score_a"].to_numpy(float), rows["score_b"].to_numpy(float)
        strata = rows["stratum"].fillna("").astype(str).tolist()
        out[str(task)] = {
            "n": len(rows),
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
