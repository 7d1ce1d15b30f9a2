"""Two runs sample by sample: which flipped, is it chance, and what each had kept of the pictures. `action=compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vtc import results
from vtc.errors import UserError
from vtc.job import Job
from vtc.report import page, tables
from vtc.report.collection import collect, describe
from vtc.report.runs import Run
from vtc.report.split import RIGHT
from vtc.statistics import compare as paired
from vtc.statistics import mcnemar
from vtc.terminal import console, table

HEADER = ["task", "questions", "a", "b", "difference", "p", "only a right", "only b right", "p of the flips"]


def compare(job: Job) -> Path:
    """Compares `job.compare.a` with `job.compare.b`; prints a table and writes `comparison.json`, `index.html`: the
    report's page, opened on the samples that flipped. Returns the folder.

    Raises:
        UserError: a run that isn't there, keeps no samples, or was asked other questions than the other one.
    """
    for key in ("a", "b"):
        if getattr(job.compare, key) is None:
            raise UserError(f"{key}=null: action=compare needs two runs: a=<run> b=<run>, each a folder or an id")
    a, b = (result_file(str(getattr(job.compare, key)), job.output_dir.expanduser(), key) for key in ("a", "b"))
    if a == b:
        raise UserError(f"b={job.compare.b}: is the same run as a={job.compare.a}")
    others = [base for path in (a, b) if (base := _baseline(path, job.output_dir)) is not None]
    settings, notes = collect(dict.fromkeys([a, b, *others]))
    runs = {run.path: run for setting in settings for run in setting.runs}
    if missing := [path for path in (a, b) if path not in runs]:
        raise UserError(f"compare: {missing[0]} can't be compared: {'; '.join(notes)}")
    first, second = runs[a], runs[b]
    setting = next(s for s in settings if first in s.runs)
    if second not in setting.runs:
        raise UserError(
            "compare: a and b were asked other questions, or in another way: "
            + " | ".join(s.about for s in settings if first in s.runs or second in s.runs)
        )
    for key, run in (("a", first), ("b", second)):
        if run.samples is None:
            raise UserError(f"{key}={getattr(job.compare, key)}: has no {results.SAMPLES} beside it")
    rows, flips = paired(a, b), flipped(first, second)
    output = Path(job.compare.output or job.output_dir / "compare").expanduser()
    content = _content(first, second, rows, flips)
    results.write_json(output / "comparison.json", content)
    section = page.Section(setting, [], tables.differences(setting), [(f["task"], f["id"]) for f in flips])
    numbers = {"one": str(setting.runs.index(first)), "two": str(setting.runs.index(second))}
    state = {"kind": "flip", "budget": "all", **numbers, "draw": numbers["one"]}
    title = f"{describe(first)} against {describe(second)}"
    results.write_text(output / "index.html", page.render([section], notes, title, job.compare.samples, state))
    _print(first, second, content, output)
    return output


def result_file(name: str, root: Path, key: str) -> Path:
    """The result file of a run: by its folder, its file, or its id below `root`.

    Raises:
        UserError: there is none, or several have this id.
    """
    path = Path(name).expanduser()
    if path.exists():
        file = path / results.RESULT if path.is_dir() else path
        if file.is_file():
            return file.resolve()
        raise UserError(f"{key}={name}: no {results.RESULT} in it")
    files = [file for file in results.find([root]) if file.parent.name.endswith(name)] if root.is_dir() else []
    if len(files) != 1:
        what = "no such folder, file or run" if not files else f"{len(files)} runs end so"
        raise UserError(f"{key}={name}: {what}; give a run's folder, its {results.RESULT}, or its id in {root}")
    return files[0]


def _baseline(path: Path, root: Path) -> Path | None:
    """The result of the uncompressed run that a run names, where it lies beside it."""
    try:
        named = (results.load(path).get("baseline") or {}).get("id")
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error
    places = [folder / "baselines" / str(named) / results.RESULT for folder in (path.parent.parent, root)]
    return next((place.resolve() for place in places if named and place.is_file()), None)


def flipped(a: Run, b: Run) -> list[dict[str, Any]]:
    """The questions that one run gets right and the other wrong, at half of the full score, by task."""
    rows = []
    for task, scale in a.scales.items():
        if task not in a.samples.index.unique("task") or task not in b.samples.index.unique("task"):
            continue
        mine, theirs = (run.samples.xs(task, level="task") for run in (a, b))
        mine, theirs = (one[~one.index.duplicated()].dropna() for one in (mine, theirs))
        for question in mine.index.intersection(theirs.index):
            right = [float(one.loc[question]) / scale >= RIGHT for one in (mine, theirs)]
            if right[0] != right[1]:
                name = question[mine.index.names.index("id")]
                rows.append({"task": task, "id": name, "right": "a" if right[0] else "b"})
    return rows


def _content(a: Run, b: Run, rows: dict[str, Any], flips: list[dict[str, Any]]) -> dict[str, Any]:
    tasks = []
    for name, row in rows.items():
        mine = [
            f for f in flips if name == "all" or name == f["task"] or name == a.rows.get(f["task"], {}).get("group")
        ]
        only = {side: sum(f["right"] == side for f in mine) for side in ("a", "b")}
        p = mcnemar([1.0] * only["a"] + [0.0] * only["b"], [0.0] * only["a"] + [1.0] * only["b"])
        tasks.append({"task": name, **row, "only_a": only["a"], "only_b": only["b"], "p_flips": p})
    about = [
        {
            "run": run.id,
            "label": describe(run),
            "command": run.result["run"].get("command", ""),
            "agreement": run.agreement(),
        }
        for run in (a, b)
    ]
    return {"a": about[0], "b": about[1], "tasks": tasks, "flipped": flips}


def _print(a: Run, b: Run, content: dict[str, Any], output: Path) -> None:
    terminal = console()
    cells = [
        [
            row["task"],
            str(row["n"]),
            f"{row['a']:.3f}",
            f"{row['b']:.3f}",
            f"{row['difference']:+.3f}",
            tables.p_text(row["p_value"]),
            str(row["only_a"]),
            str(row["only_b"]),
            tables.p_text(row["p_flips"]),
        ]
        for row in content["tasks"]
    ]
    terminal.print(f"a: {describe(a)}, run {a.id}", markup=False, soft_wrap=True)
    terminal.print(f"b: {describe(b)}, run {b.id}", markup=False, soft_wrap=True)
    for side, run in zip("ab", (content["a"], content["b"]), strict=True):
        if run["agreement"] is not None:
            said = f"{side} answers {run['agreement']:.1%} of the questions as the uncompressed backbone does"
            terminal.print(f"{said}, mean over tasks")
    least = ("p of the flips", "difference", "questions")
    terminal.print(table("", HEADER, cells, terminal.width, least=least, left=("task",)))
    count = len(content["flipped"])
    said = f"{count} question{'' if count == 1 else 's'} flipped → {output / 'index.html'}, comparison.json"
    terminal.print(said, markup=False, soft_wrap=True)
