"""Processor time, memory and size of a report on many result files.

    python benchmarks/speed/report.py            # 10,000 fabricated results: 100 methods at 100 budgets
    python benchmarks/speed/report.py 1000

prints a line: results, seconds of processor time, peak memory in MiB, size of the page in MB. The results hold scores
of nine tasks and no samples, as a folder of ten thousand runs that were gathered for a table.
"""

from __future__ import annotations

import copy
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from vtc import results, shipped
from vtc.cli import main

TEMPLATE = "benchmarks/results/pocket2/rows/fastv-16-s0"


def fabricate(folder: Path, count: int) -> None:
    """So many results, each of a method and a budget of its own, made of a committed one."""
    template = results.load(shipped.root() / TEMPLATE)
    methods = max(1, round(count**0.5))
    for number in range(count):
        method, tokens = f"method{number % methods:03d}", 1 + number // methods
        result = copy.deepcopy(template)
        result["run"]["id"] = f"{number:012x}"
        for section in (result["method"], result["config"]["method"]):
            section["name"] = method
        result["config"]["tokens"] = tokens
        result["budget"]["visual_tokens_out"] = float(tokens)
        file = folder / str(number) / results.RESULT
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(result))


def measured(count: int) -> str:
    """The line that is printed."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        fabricate(folder / "runs", count)
        before = time.process_time()
        main(["action=report", f"report.inputs=[{folder / 'runs'}]", f"report.output={folder / 'report'}"])
        seconds = time.process_time() - before
        size = (folder / "report/index.html").stat().st_size / 1e6
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return f"{count} results: {seconds:.1f} s of processor time, {memory:.0f} MiB, page of {size:.1f} MB"


if __name__ == "__main__":
    print(measured(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
