"""The floors of pocket's second edition, from `benchmarks/pocket/floors.json`."""

from __future__ import annotations

import json
from pathlib import Path

from vtc.report import tables

FILE = "benchmarks/pocket/floors.json"


def floors_part(root: Path) -> str:
    """What each task states, and what a second guesser had on the test set."""
    file = root / FILE
    if not file.is_file():
        return "Not measured yet: `python benchmarks/pocket/floors.py`.\n"
    measured = json.loads(file.read_text(encoding="utf-8"))
    rows = []
    for name, task in measured["tasks"].items():
        cells = [f"`pocket2_{name}`"]
        for floor in ("blind", "bag"):
            stated, tried = task[floor], task[floor]["test set"]
            cells += [f"{stated['score']:.3f} ± {stated['stderr']:.3f}", f"{tried['score']:.3f} (z {tried['z']:+.1f})"]
        rows.append(cells)
    header = ["task", "blind floor", "on the test set", "bag floor", "on the test set"]
    return tables.markdown(header, rows) + "\n"
