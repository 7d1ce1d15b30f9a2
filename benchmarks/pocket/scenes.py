"""Do the scores hold on other scenes? Rows of the one table again, on test sets that other seeds draw.

    python benchmarks/pocket/scenes.py                        # no compression, Fwd2Bot and Victor at 16 tokens
    python benchmarks/pocket/scenes.py --rows fastv-16-s0     # of table.yaml

The weights are those of `table.py`, whose `--work` it shares, and are made where they aren't there. What is measured is
kept in `benchmarks/results/pocket2/scenes.json` and not measured again. `z` is the difference from the published score
in standard errors of such a difference: of 18 tasks of a row one may be expected beyond 1.9.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import yaml
from table import TABLE, TARGET, Row, Table

from vtc import results
from vtc.configuration import parse
from vtc.job import written
from vtc.pocket import second
from vtc.statistics import Estimate

OUT = TARGET / "scenes.json"
ROWS = ["uncompressed", "fwd2bot-16-s0", "victor-16-s0"]
SEEDS = [1, 2]


def score(table: Table, row: Row, seed: int) -> Path:
    """The result of a row on the scenes of a seed."""
    from vtc.evaluation import evaluate

    scenes = table.work / "scenes" / str(seed)
    data, runs = scenes / "data", scenes / "runs"  # a run isn't known by where its data lie
    second.materialise(data, seed=seed)
    weights = [written("checkpoint", table.weights(row.training))] if row.training else []
    job = parse([*row.command, written("output_dir", runs), written("benchmark.data", data), *weights])
    return Path(evaluate(job))


def compared(published: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Task → `{score, published, z}`, and under `mean` that of the tasks, as shares of their full scores."""
    after, before = ({row["task"]: _share(row) for row in result["scores"]} for result in (other, published))
    pairs = {task: (estimate, before[task]) for task, estimate in after.items()}
    sides = zip(*pairs.values(), strict=True)
    return {name: _beside(*pair) for name, pair in (pairs | {"mean": tuple(map(Estimate.mean, sides))}).items()}


def _share(row: dict[str, Any]) -> Estimate:
    scale = row.get("scale") or 1.0
    return Estimate(row["value"] / scale, row["stderr"] / scale)


def _beside(other: Estimate, published: Estimate) -> dict[str, float]:
    difference, error = other.value - published.value, math.hypot(other.stderr or 0.0, published.stderr or 0.0)
    z = difference / error if error else 0.0 if not difference else math.copysign(math.inf, difference)
    return {"score": round(other.value, 4), "published": round(published.value, 4), "z": round(z, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=ROWS)
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--work", type=Path, default=Path("outputs/pocket2-table"), help="states and weights")
    options = parser.parse_args()
    table = Table(yaml.safe_load(TABLE.read_text(encoding="utf-8")), options.work)
    rows = {row.label: row for name in table.methods for row in table.rows(name)}
    for label in options.rows:
        if label not in rows or rows[label].piece is None:
            parser.error(f"--rows {label}: table.py has no such row yet")
    measured: dict[str, Any] = json.loads(OUT.read_text(encoding="utf-8")) if OUT.is_file() else {}
    for label in options.rows:
        published = results.load(rows[label].folder)
        for seed in options.seeds:
            if str(seed) in measured.get(label, {}):
                continue
            result = results.load(score(table, rows[label], seed))
            found = {"commit": result["run"]["git_commit"], "tasks": compared(published, result)}
            measured.setdefault(label, {})[str(seed)] = found
            results.write_text(OUT, json.dumps(measured, indent=2) + "\n")
            print(f"{label}, scenes of seed {seed}: {found['tasks']['mean']}", flush=True)


if __name__ == "__main__":
    main()
