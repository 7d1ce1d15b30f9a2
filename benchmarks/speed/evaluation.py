"""How long an evaluation takes: a sweep against its points one by one, and one run against another state of the code.

    python benchmarks/speed/evaluation.py sweep --limit 10 --out benchmarks/results/speed/sweep.json
    python benchmarks/speed/evaluation.py run --other ../vtc-996d048 --this benchmark=pocket1 \
        --out benchmarks/results/speed/evaluation.json

`sweep`: twelve points of pocket, three methods at four budgets, `--limit` samples a task: once in one process, once as
twelve commands that share an output folder, so that their baseline is made once too. `run`: one method on all of
pocket, 2,600 samples, and its baseline, 2,600 more, by this checkout and by the one at `--other` (a `git worktree` of
an earlier commit; what was `pocket` to the earliest ones is `pocket1` now). In either case both sides take turns, which
of them begins changes from round to round, each has an output folder and a cache of its own that are empty, and test
sets that are drawn already. Measured are the wall clock and the processor time of all processes together; the answers
of both sides are compared, sample by sample. On a machine that others use as well `--together` runs both sides at once,
so that either has the same neighbours.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vtc import results
from vtc.evaluation.record import git_commit
from vtc.pocket import second, splits

HERE = Path(__file__).resolve().parents[2]
METHODS, TOKENS = ("fastv", "avgpool", "divprune"), (4, 16, 36, 72)
Side = Callable[[Path], float]


def vtc(tree: Path, folder: Path, *words: str) -> float:
    """A command of a checkout, in silence; returns its processor time in seconds, that of its own processes included.

    Raises:
        RuntimeError: it failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(tree), "VTC_CACHE": str(folder / "cache")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # without compiled files the import alone would be half of it
    command = [sys.executable, "-m", "vtc", *words, f"output_dir={folder / 'out'}"]
    process = subprocess.Popen(command, cwd=tree, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def timed(side: Side, data: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """What a side takes in an empty folder, and its answers by run, task and sample."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copytree(data, folder / "cache" / "pocket")
        start = time.perf_counter()
        cpu = side(folder)
        wall = time.perf_counter() - start
        answers = {}
        for path in results.find([folder / "out"]):
            config = results.load(path)["config"]
            key = f"{path.parent.parent.name == 'baselines'} {config['method']['name']} {config['tokens']}"
            frame = results.samples(path)[["task", "id", "prediction", "score"]]
            answers[key] = frame.astype(str).values.tolist()
        return {"wall": round(wall, 2), "cpu": round(cpu, 2)}, answers


def sides_of(options: argparse.Namespace) -> tuple[str, str, dict[str, Side]]:
    """The names of what is claimed to be faster and of the other, and both."""
    words = [f"benchmark.limit={options.limit}"] if options.limit else []
    words += ["costs=none"] if options.claim == "sweep" else []
    if options.claim == "run":
        command = ["method=fastv", "tokens=16", *words]
        return (
            "this",
            "other",
            {
                "this": lambda folder: vtc(HERE, folder, *command, *options.this),
                "other": lambda folder: vtc(options.other.resolve(), folder, *command),
            },
        )
    grid = [f"method={','.join(METHODS)}", f"tokens={','.join(map(str, TOKENS))}"]

    def one_by_one(folder: Path) -> float:
        points = [(f"method={method}", f"tokens={tokens}") for method in METHODS for tokens in TOKENS]
        return sum(vtc(HERE, folder, *point, *words) for point in points)

    return "sweep", "separate", {"sweep": lambda f: vtc(HERE, f, "-m", *grid, *words), "separate": one_by_one}


def differing(one: dict[str, Any], other: dict[str, Any]) -> dict[str, int]:
    """Of each run, how many samples have another answer or score; runs that only one side has count whole."""
    counts = {}
    for key in sorted(one.keys() | other.keys()):
        mine, theirs = one.get(key, []), other.get(key, [])
        changed = sum(a != b for a, b in zip(mine, theirs, strict=False)) + abs(len(mine) - len(theirs))
        counts[key] = changed
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("claim", choices=("sweep", "run"))
    parser.add_argument("--other", type=Path, default=HERE)
    parser.add_argument("--this", nargs="*", default=[], help="words of `run` that this checkout alone gets")
    parser.add_argument("--limit", type=int, default=None, help="samples a task")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--together", action="store_true", help="both sides at once: for a machine that others use too")
    parser.add_argument("--out", type=Path, default=None, help="rounds that are there already count")
    options = parser.parse_args()
    data = Path(tempfile.gettempdir()) / "vtc-speed-pocket"
    for edition in (splits, second):
        edition.materialise(data)
    fast, slow, sides = sides_of(options)
    other = None if options.other == HERE else git_commit(options.other)
    words = [f"../vtc-{other[:7]}" if other and word == str(options.other) else word for word in sys.argv[1:]]
    rounds: list[dict[str, Any]] = []
    if options.out and options.out.is_file():
        rounds = json.loads(options.out.read_text(encoding="utf-8"))["rounds"]
    for _ in range(options.rounds):
        order = [fast, slow] if len(rounds) % 2 == 0 else [slow, fast]
        with ThreadPoolExecutor(2 if options.together else 1) as pool:  # a thread waits for a process
            both = dict(zip(order, pool.map(lambda name: timed(sides[name], data), order), strict=True))
        spent, answers = ({name: pair[i] for name, pair in both.items()} for i in range(2))
        print(spent, flush=True)
        changed = differing(answers[fast], answers[slow])
        rounds.append({"order": order, **spent, "runs": len(changed), "samples_that_differ": sum(changed.values())})
        ratios = {k: [r[fast][k] / r[slow][k] for r in rounds] for k in ("wall", "cpu")}
        content = {
            "command": " ".join(["python", "benchmarks/speed/evaluation.py", *words]),
            "commit": git_commit(),
            "other": other,
            "threads": os.environ.get("OMP_NUM_THREADS", "torch's default"),
            "limit": options.limit,
            "together": options.together,
            "ratio": {k: round(statistics.median(v), 4) for k, v in ratios.items()},
            "spread": {k: [round(min(v), 4), round(max(v), 4)] for k, v in ratios.items()},
            "rounds": rounds,
        }
        print(json.dumps({k: content[k] for k in ("ratio", "spread")}), "differ:", sum(changed.values()), flush=True)
        if options.out:
            results.write_json(options.out, content)


if __name__ == "__main__":
    main()
