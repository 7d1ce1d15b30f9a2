"""How a report grows: thousands of result files, drawn at random, reported on, with processor time and memory.

    python benchmarks/report/scale.py benchmarks/report/scale.json

Half of the tables are of one backbone, so that titles must tell many apart; runs have a headline for each of nine tasks
and costs, as `action=evaluate` writes them, and no `samples.parquet`: what reading and comparing samples takes is what
`committed` says, the report of benchmarks/results.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from vtc import results, shipped

FILES, METHODS, BUDGETS = 10_000, 40, (4, 16, 36, 64)
TASKS = [f"task_{at}" for at in range(9)]
SEED = 0


def make(folder: Path, count: int = FILES) -> None:
    """Result files: tables of 160 runs and their baseline."""
    rng = np.random.default_rng(SEED)
    for at in range(count):
        table, place = divmod(at, METHODS * len(BUDGETS))
        method, tokens = f"method{place % METHODS:02d}", BUDGETS[place // METHODS]
        if place == 0:
            method, tokens = "none", 144
        path = folder / f"{at}" / results.RESULT
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(result(rng, table, method, tokens, at)))


def result(rng: np.random.Generator, table: int, method: str, tokens: int, at: int) -> dict:
    backbone = "backbone" if table % 2 else f"backbone{table}"
    rows = []
    for task in TASKS:
        value = float(np.clip(0.9 - 2 / tokens - 0.1 * rng.random(), 0, 1))
        row = {"task": task, "group": "understanding", "metric": "accuracy", "value": value, "stderr": 0.01, "n": 300}
        rows.append(
            row | {"baseline": 0.9, "retained": value / 0.9, "p_value": 0.5, "agreement": 0.9, "data": f"d{table}"}
        )
    versions = {"vtc": "0.1.0", "torch": "2.9.0", "transformers": "5.0.0"}
    run = {"id": f"{at:012x}", "created": "2026-01-01T00:00:00+00:00", "command": f"python -m vtc method={method}"}
    return {
        "schema": results.SCHEMA,
        "run": run | {"versions": versions, "git_commit": "c" * 40, "code": "x", "device": "cpu", "dtype": "float32"},
        "config": {
            "action": "evaluate",
            "backbone": {"name": backbone, "pretrained": None, "dtype": "float32"},
            "method": {"name": method, "layer": 2},
            "tokens": tokens,
            "benchmark": {"name": "synthetic", "tasks": TASKS, "limit": table + 1},
            "seed": 0,
        },
        "backbone": {"name": backbone},
        "method": {"name": method, "tokens": tokens, "options": {"layer": 2}},
        "checkpoint": None,
        "budget": {"visual_tokens_in": 144, "visual_tokens_out": tokens, "flops_ratio": 0.3 + 0.7 * tokens / 144},
        "scores": rows,
        "efficiency": {
            "ttft_ms": {"median": 10 + tokens / 10},
            "ttft_speedup": 1.1,
            "throughput": {"128": 900.0 / tokens},
            "kv_cache_bytes": 1000 * tokens,
        },
    }


def measure(inputs: Path, output: Path) -> dict:
    """Seconds, processor seconds and memory of `action=report` in a process of its own."""
    command = [sys.executable, "-m", "vtc", "action=report", f"report.inputs=[{inputs}]", f"report.output={output}"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{command}: exit status {status}")
    return {
        "files": sum(1 for _ in results.find([inputs])),
        "seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "memory_mib": round(usage.ru_maxrss / 1024),
        "page_mb": round((output / "index.html").stat().st_size / 1e6, 1),
    }


def main(argv: list[str]) -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "runs")
        content = {
            "command": "python benchmarks/report/scale.py benchmarks/report/scale.json",
            "seed": SEED,
            "synthetic": measure(folder / "runs", folder / "synthetic"),
            "committed": measure(shipped.path("benchmarks/results"), folder / "committed"),
        }
    print(json.dumps(content, indent=1))
    if argv:
        results.write_json(Path(argv[0]), content)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
