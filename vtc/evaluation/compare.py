"""Two finished runs task by task: which is better, and is it chance?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vtc.evaluation import statistics


def compare(a: str | Path, b: str | Path) -> dict[str, dict[str, Any]]:
    """Paired comparison of two result files (or their folders), on the samples that both scored.

    Returns:
        task → `{n, a, b, difference, p_value}`, and under `understanding`, `discriminative` and `all` the same for the
        means over those tasks. `p_value` is the exact McNemar test's for 0/1 scores, else that of 9,999 sign flips of
        the paired differences, each weighted by what it adds to the mean. Tasks without sample scores are left out.
    """
    from vtc import results

    groups = {row["task"]: row["group"] for result in (a, b) for row in results.load(result)["scores"]}
    return compare_samples(results.samples(a), results.samples(b), groups)


def compare_samples(a: Any, b: Any, groups: dict[str, str]) -> dict[str, dict[str, Any]]:
    """`compare` on two frames of samples (columns task, id, score, stratum)."""
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
        weighted[str(task)] = statistics.weights(strata) * (x - y)
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
                "a": float(np.mean([out[t]["a"] for t in members])),
                "b": float(np.mean([out[t]["b"] for t in members])),
                "p_value": statistics.sign_flips(differences),
            }
    for row in out.values():
        row["difference"] = row["a"] - row["b"]
    return out
