"""Retrieval and hard captions on pocket, with errors that know the groups, beside the order of Fwd2Bot's tables 3 to 5.

    python benchmarks/store/retrieval.py --out benchmarks/store/retrieval.json

It reads committed results and loads no model. The 200 pairs of retrieval are 50 groups of four pictures with the same
attributes, bound differently, so a query's rivals are in its own group and queries of one group share them: errors are
of a bootstrap over groups. The pairs of hard captions are drawn one by one. The ablations of table 5 were scored on the
first edition of the tests. `blind` is the floor that is measured for a set: what text alone answers. The paper's
zero-shot model is the uncompressed one; pocket's was trained to embed pictures and captions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

GROUP, DRAWS, SEED = 4, 10_000, 0
TASKS = ("retrieval", "hard_captions")
ROWS, TABLE_5 = "pocket2/rows", "ablations/fwd2bot_table5"
RUNS = {
    "fwd2bot, L_AR + L_disc, 16 tokens, as shipped": f"{ROWS}/fwd2bot-shipped-16-s0",
    "fwd2bot, L_AR + L_disc, 4 tokens, as shipped": f"{ROWS}/fwd2bot-shipped-4-s0",
    "uncompressed": f"{ROWS}/uncompressed",
    "avgpool, 16 tokens": f"{ROWS}/avgpool-16-s0",
    "avgpool, 4 tokens": f"{ROWS}/avgpool-4-s0",
    "fwd2bot, L_AR + L_disc, 16 tokens, 200 steps (first edition)": f"{TABLE_5}/both-s0",
    "fwd2bot, L_AR alone, 16 tokens, 200 steps (first edition)": f"{TABLE_5}/ar-s0",
    "fwd2bot, L_disc alone, 16 tokens, 200 steps (first edition)": f"{TABLE_5}/disc-s0",
}
FULL, ZERO, POOL, BOTH, AR, DISC = (list(RUNS)[n] for n in (0, 2, 3, 5, 6, 7))
# What text alone answers of the first edition's hard captions: a classifier that counts words (docs/pocket.md).
FIRST = {"retrieval": 0.005, "hard_captions": 0.83}
# What the paper's tables order, as (better, worse, its numbers, whether they are of one direction).
ORDERS = (
    (
        FULL, ZERO,
        "table 3: LLaVA-1.5-7B, Flickr30k R@1 text to image 83.8 against 59.6, image to text 94.3 against 65.6; "
        "table 4: swapped attributes 78.1 against 58.8",
        True,
    ),
    (BOTH, AR, "table 5: Flickr30k text to image 83.8 against 61.3, image to text 94.4 against 76.0", True),
    (
        BOTH, DISC,
        "table 5: text to image 83.8 against 84.3 (Flickr30k) and 56.8 against 56.3 (COCO): no order", False,
    ),
    (FULL, POOL, "average pooling isn't among the paper's embeddings: no order", False),
)  # fmt: skip


def edition(name: str) -> str:
    """What the tasks of a committed run begin with."""
    return "pocket_" if name.startswith(TABLE_5) else "pocket2_"


def samples(name: str, task: str) -> tuple[list[str], np.ndarray]:
    """Ids and scores of a committed run, in the order of the test set."""
    from vtc import results, shipped

    table = results.samples(shipped.path(f"benchmarks/results/{name}/result.json"))
    own = table[table.task == edition(name) + task].copy()
    own["number"] = own.id.str.rpartition("-")[2].astype(int)
    own = own.sort_values("number")
    return list(own.id), own.score.to_numpy(dtype=float)


def resampled(scores: np.ndarray, size: int) -> np.ndarray:
    """[DRAWS] means of groups drawn with replacement."""
    groups = scores.reshape(-1, size).mean(1)
    index = np.random.default_rng(SEED).integers(len(groups), size=(DRAWS, len(groups)))
    return groups[index].mean(1)


def described(scores: np.ndarray, size: int) -> dict[str, Any]:
    draws = resampled(scores, size)
    return {
        "value": round(float(scores.mean()), 4),
        "stderr_by_group": round(float(draws.std(ddof=1)), 4),
        "stderr_as_if_alone": round(float(scores.std(ddof=1) / len(scores) ** 0.5), 4),
        "interval": [round(float(q), 4) for q in np.quantile(draws, (0.025, 0.975))],
        "n": len(scores),
        "groups": len(scores) // size,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    from vtc import results, shipped

    rows, kept = [], {}
    for task in TASKS:
        size = GROUP if task == "retrieval" else 1
        for label, name in RUNS.items():
            ids, scores = samples(name, task)
            kept[task, label] = ids, scores
            told = results.load(shipped.path(f"benchmarks/results/{name}/result.json"))["scores"]
            row = next(row for row in told if row["task"] == edition(name) + task)
            if edition(name) == "pocket2_":
                blind = row["blind"]
            extra = {k: round(v, 4) for k, v in row["metrics"].items() if "_R@" in k}
            rows.append({"task": task, "run": label, "result": name, **described(scores, size), **extra})
        rows.append({"task": task, "run": "blind", "value": round(blind, 4)})
        rows.append({"task": task, "run": "blind (first edition)", "value": FIRST[task]})
    orders = []
    for task in TASKS:
        size = GROUP if task == "retrieval" else 1
        for better, worse, paper, ordered in ORDERS:
            (ids, a), (other, b) = kept[task, better], kept[task, worse]
            assert ids == other
            draws = resampled(a - b, size)
            low, high = (round(float(q), 4) for q in np.quantile(draws, (0.025, 0.975)))
            above, below = ("agrees", "disagrees") if ordered else ("above", "below")
            verdict = above if low > 0 else below if high < 0 else "can't tell"
            orders.append(
                {
                    "task": task,
                    "better": better,
                    "worse": worse,
                    "paper": paper,
                    "difference": round(float((a - b).mean()), 4),
                    "interval": [low, high],
                    "here": verdict,
                }
            )
    content = {"command": "python benchmarks/store/retrieval.py", "draws": DRAWS, "rows": rows, "orders": orders}
    print(json.dumps(content, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
