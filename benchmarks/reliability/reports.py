"""One damaged run beside two whole ones: the report is made of the whole ones, and says in a line what it left out."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from attack import Case, Outcome

from vtc import shipped

ROWS = "benchmarks/results/pocket2/rows"
WHOLE, DAMAGED = ("random-16-s0", "divprune-16-s0"), "fastv-16-s0"
VALUES: tuple[Any, ...] = (None, "x", -1, [], {}, float("nan"), True)
DELETED = object()


def paths(value: Any, depth: int = 2) -> Iterator[tuple[str | int, ...]]:
    """The keys of a result, two levels deep; of a list its first entry."""
    entries = (
        value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    )
    for key, inner in entries:
        yield (key,)
        if depth > 1:
            yield from ((key, *rest) for rest in paths(inner, depth - 1))


def changed(result: dict[str, Any], path: tuple[str | int, ...], value: Any) -> bytes:
    result = copy.deepcopy(result)
    at: Any = result
    for key in path[:-1]:
        at = at[key]
    if value is DELETED:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return json.dumps(result).encode()


def write(folder: Path, result: bytes | None = None, samples: bytes | None = None, kind: str = "") -> None:
    for name in (*WHOLE, DAMAGED):
        shutil.copytree(shipped.path(f"{ROWS}/{name}"), folder / "in" / name)
    file = folder / "in" / DAMAGED / "result.json"
    if result is not None:
        file.write_bytes(result)
    if samples is not None:
        (folder / "in" / DAMAGED / "samples.parquet").write_bytes(samples)
    if kind:
        file.unlink()
        {"pipe": os.mkfifo, "folder": os.mkdir, "loop": lambda f: os.symlink(f, f)}[kind](file)


def page(outcome: Outcome) -> str:
    """What is wrong with the report: no page, a whole run that isn't on it, or a damaged one in it without a word."""
    file = outcome.folder / "out" / "index.html"
    if not file.exists():
        return "no page"
    table = (outcome.folder / "out" / "table.md").read_text() if (outcome.folder / "out" / "table.md").exists() else ""
    absent = [name for name in ("random", "divprune") if name not in (table or file.read_text())]
    return f"not in the report: {', '.join(absent)}" if absent else ""


def named(outcome: Outcome) -> str:
    """As `page`; what was left out is named too."""
    said = outcome.out + outcome.err
    return page(outcome) or ("" if DAMAGED in said else "left out, or taken, without a word")


def cases(folder: Path) -> Iterator[Case]:
    argv = ["action=report", "report.inputs=[in]", "report.output=out"]
    source = shipped.path(f"{ROWS}/{DAMAGED}")
    result = json.loads((source / "result.json").read_text())
    yield Case("untouched", argv, "works", page, write)
    for path in paths(result):
        for value in VALUES if len(path) == 1 else (None, "x[/nope]<script>", DELETED):
            shown = "deleted" if value is DELETED else repr(value)
            name = f"{'.'.join(map(str, path))}: {shown}"
            yield Case(name, argv, "works", page, partial(write, result=changed(result, path, value)))
    data = (source / "samples.parquet").read_bytes()
    for name, content in {
        "empty": b"",
        "half": data[: len(data) // 2],
        "text": b"no parquet",
        "head": data[:4],
    }.items():
        yield Case(f"samples {name}", argv, "works", named, partial(write, samples=content))
    for name, text in {
        "empty": b"",
        "cut": (source / "result.json").read_bytes()[:500],
        "nested": b"[" * 200000,
        "binary": b"\xff\xfe\x00",
        "list": b"[]",
        "number": b"5",
    }.items():
        yield Case(f"result {name}", argv, "works", named, partial(write, result=text))
    for kind in ("pipe", "folder", "loop"):
        yield Case(f"result is a {kind}", argv, "works", page, partial(write, kind=kind))
