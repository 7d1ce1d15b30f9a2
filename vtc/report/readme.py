"""Fills the marked parts of README.md from committed files, so that no number there is typed by hand.

    python -m vtc.report.readme            # README.md and docs/images/ from benchmarks/results/
    python -m vtc.report.readme --check    # exit code 1 if README.md would change

A part stands between `<!-- begin NAME -->` and `<!-- end NAME -->`: `result` is the table that `make bench` prints,
`sweep` the comparison of all committed runs with its plots, `method` the example method's file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vtc import results, shipped
from vtc.errors import UserError
from vtc.report import plots, tables
from vtc.report.runs import Setting, collect

RESULTS = "benchmarks/results"
IMAGES = "docs/images"
EXAMPLE = "examples/vtc-plugin-example/src/vtc_plugin_example/loudest.py"
MAIN = {"backbone": "pocket", "method": "fwd2bot", "benchmark": "pocket", "tokens": 16}
PART = re.compile(r"(<!-- begin (?P<name>\w+) -->\n).*?(<!-- end (?P=name) -->)", re.DOTALL)


def committed(root: Path) -> list[Path]:
    """The result files under `benchmarks/results`."""
    found = []
    for path in sorted((root / RESULTS).rglob("*.json")):
        try:
            results.load(path)
        except ValueError:
            continue  # something else that is kept beside the results
        found.append(path)
    return found


def main_result(root: Path) -> dict[str, Any] | None:
    """The newest committed result of the main job, on all samples."""
    fitting = []
    for path in committed(root):
        result = results.load(path)
        config = result["config"]
        whole = {key: config[key]["name"] for key in ("backbone", "method", "benchmark")} | {"tokens": config["tokens"]}
        if whole == MAIN and config["benchmark"].get("limit") is None and config.get("checkpoint") == "auto":
            fitting.append(result)
    return max(fitting, key=lambda r: r["run"]["created"], default=None)


def sweep_setting(root: Path) -> Setting | None:
    """The committed runs of the pocket benchmark, of those with the same samples the largest table."""
    try:
        settings, _ = collect(committed(root))
    except UserError:
        return None
    of_pocket = [s for s in settings if s.runs[0].config["benchmark"]["name"] == "pocket"]
    return max(of_pocket, key=lambda s: len(s.runs), default=None)


def result_part(root: Path) -> str:
    from vtc.evaluation import display

    result = main_result(root)
    if result is None:
        return "No result is committed yet. `make bench` makes one and prints its table.\n"
    table = display.markdown(result)
    return re.sub(r"^# (.*)$", r"**\1**", table, count=1, flags=re.MULTILINE).strip() + "\n"


def sweep_part(root: Path) -> str:
    setting = sweep_setting(root)
    if setting is None or len(setting.runs) < 2:
        return "No sweep is committed yet. The commands above make one, and its table and plots.\n"
    header, rows = tables.cells(setting)
    shown = 3 + 2 * len(tables.columns(setting))
    lines = [tables.markdown(header[:shown], [row[:shown] for row in rows]), ""]
    lines.append(
        f"± is half a 95 % confidence interval. {len(setting.runs)} runs over {len(setting.tasks)} tasks, from "
        f"[{RESULTS}]({RESULTS}); with p-values, task by task: `python -m vtc action=report report.inputs=[{RESULTS}]`."
    )
    lines += [f"\n{note[0].upper()}{note[1:]}." for note in setting.notes]
    lines += [f"\n![score against {axis}]({image(axis)})" for axis in ("tokens", "flops")]
    return "\n".join(lines) + "\n"


def method_part(root: Path) -> str:
    return f"```python\n{(root / EXAMPLE).read_text(encoding='utf-8')}```\n"


PARTS: dict[str, Callable[[Path], str]] = {"result": result_part, "sweep": sweep_part, "method": method_part}


def image(axis: str) -> str:
    return f"{IMAGES}/pareto-{axis}.png"


def filled(text: str, root: Path) -> str:
    """`text` with every marked part made anew.

    Raises:
        KeyError: a part that nobody makes.
    """
    return PART.sub(lambda part: part[1] + PARTS[part["name"]](root) + part[3], text)


def main(argv: list[str]) -> int:
    root = shipped.root()
    file = root / "README.md"
    text = file.read_text(encoding="utf-8")
    new = filled(text, root)
    if "--check" in argv:
        print("README.md is up to date" if new == text else "README.md is out of date: python -m vtc.report.readme")
        return int(new != text)
    setting = sweep_setting(root)
    if setting is not None and len(setting.runs) > 1:
        for axis in ("tokens", "flops"):
            plots.pareto(setting, axis, root / image(axis))
    results.write_text(file, new)
    print(f"README.md: {'changed' if new != text else 'as it was'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
