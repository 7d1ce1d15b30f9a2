"""Damaged files under `report.inputs`: each is named in a line and left out, and the others are reported."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricated import TASKS, make

from vtc import results
from vtc.cli import main
from vtc.errors import UserError
from vtc.report.collection import collect

DAMAGES = (
    None, True, -1, -0.5, float("nan"), float("inf"), float("-inf"), 10**400, 1e300, "16", "", "x[/nope]", "a\nb",
    "\ud800", "\x1b[31m", "字" * 10_000, [], [[]], {}, {"a": 1}, "<script>alert(1)</script>", "$\\nope$", "_x|y",
)  # fmt: skip
MISSING = object()


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for method in ("fastv", "victor"):
        scores = {task: (rng.random(20) < 0.7).astype(float) for task in TASKS}
        path = make(tmp_path / "in", method, 16, 0.7, samples=scores, stderr=None)
        result = json.loads((path / results.RESULT).read_text())
        for row in result["scores"]:
            row |= {
                "stderr": (row["value"] * (1 - row["value"]) / 20) ** 0.5,
                "n": 20,
                "scale": 1.0,
                "share": row["value"],
            }
            row |= {"version": "1", "data": "d1e2"}
        costs = {"flops_ratio_with_vision": 0.7, "ttft_speedup": 1.1, "speedup": 1.2, "method_share": 0.1}
        results.write(path, result | {"efficiency": {"prefill_flops": 1e9, **costs}, "baseline": {"id": "none1"}})
    return tmp_path / "in"


def leaves(value: object, at: tuple = ()) -> Iterator[tuple]:
    """Where something stands in a result: every section, row and value."""
    if at:
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, inner in items:
        yield from leaves(inner, (*at, key))


def damaged(result: dict, at: tuple, damage: object) -> dict:
    result = deepcopy(result)
    inside = result
    for key in at[:-1]:
        inside = inside[key]
    if damage is MISSING:
        del inside[at[-1]]
    else:
        inside[at[-1]] = damage
    return result


def reported(inputs: Path, capsys) -> tuple[int, str, pd.DataFrame]:
    """Exit code, what was printed, and the table of a report."""
    table = inputs.parent / "out" / "table.csv"
    table.unlink(missing_ok=True)
    code = main(["action=report", f"report.inputs=[{inputs}]", f"report.output={table.parent}"])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    return code, printed.out + printed.err, pd.read_csv(table) if table.exists() else pd.DataFrame()


def test_every_field_damaged_in_many_ways(inputs: Path, monkeypatch) -> None:
    """No damage ends the report, and no damaged number is in it: what is there is what the whole file says."""
    from vtc.report import page, runs, tables

    monkeypatch.setattr(runs, "read_scores", cache(runs.read_scores))  # the samples stay as they are
    path = next(inputs.glob("fastv*")) / results.RESULT
    whole = json.loads(path.read_text())
    (setting,), _ = collect([inputs])
    expected = {row["method"]: row for row in tables.frame(setting).to_dict("records")}
    numbers = [name for name, value in expected["fastv"].items() if isinstance(value, float)]
    tried = named = 0
    shown_wrong = []
    for at in leaves(whole):
        for damage in (*DAMAGES, MISSING):
            path.write_text(json.dumps(damaged(whole, at, damage)))
            settings, notes = collect([inputs])
            frames = [row for s in settings for row in tables.frame(s).to_dict("records")]
            if ours := [row for row in frames if Path(row["file"]) == path]:
                text = page.render([page.Section(s, [], tables.differences(s)) for s in settings], notes, "title")
                assert "<script>alert" not in text.encode().decode()
                assert all(tables.markdown(*tables.cells(s)).encode() for s in settings)
            assert len(frames) - len(ours) == 1, "the other file is always there"
            assert bool(ours) != any(str(path) in note and note.startswith("left out") for note in notes), (at, damage)
            for row in ours:
                shown = {n: row[n] for n in numbers if n in row and row[n] is not None and row[n] == row[n]}
                wrong = {n: v for n, v in shown.items() if v != pytest.approx(expected["fastv"][n])}
                shown_wrong += [f"{at} damaged as {damage!r:.20}: {wrong}"] if wrong else []
            assert all(len(note) < 500 and note.isprintable() for note in notes), (at, damage)
            tried, named = tried + 1, named + (not ours)
    assert not shown_wrong, "\n".join(shown_wrong)
    assert tried > 1_000 and named > tried / 3


FILES = {
    "empty": b"",
    "half": b'{"run": {',
    "not UTF-8": b"\xff\xfe\x00",
    "deep": b"[" * 200_000,
    "deep but closed": b"[" * 500 + b"]" * 500,
    "a list": b"[]",
    "huge number": b'{"run": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_a_damaged_file_is_named(inputs: Path, content: bytes, capsys) -> None:
    path = next(inputs.glob("fastv*")) / results.RESULT
    path.write_bytes(content)
    code, printed, table = reported(inputs, capsys)
    assert code == 0 and f"left out: {path}" in printed and list(table.method) == ["victor"]


@pytest.mark.parametrize("kind", ["FIFO", "folder", "loop", "dangling", "huge"])
@pytest.mark.parametrize("name", [results.RESULT, results.SAMPLES])
def test_what_is_no_regular_file_is_named_and_not_waited_for(inputs: Path, kind: str, name: str, capsys) -> None:
    path = next(inputs.glob("fastv*")) / name
    path.unlink()
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(results.LARGEST + 1)
    else:
        path.symlink_to(path if kind == "loop" else path.with_name("nowhere"))
    code, printed, table = reported(inputs, capsys)
    left_out = name == results.RESULT
    assert code == 0 and sorted(table.method) == (["victor"] if left_out else ["fastv", "victor"])
    assert ("left out: " if left_out else "its samples are left out") in printed


def test_a_folder_and_a_file_that_may_not_be_read_are_named(inputs: Path, monkeypatch, capsys) -> None:
    path = next(inputs.glob("fastv*")) / results.RESULT
    read = Path.read_bytes

    def forbidden(self: Path) -> bytes:
        if self == path:
            raise PermissionError(13, "Permission denied", str(path))
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    code, printed, table = reported(inputs, capsys)
    assert code == 0 and "Permission denied" in printed and str(path) in printed and list(table.method) == ["victor"]
    monkeypatch.undo()
    scan = os.scandir
    folder = next(inputs.glob("victor*"))

    def closed(where):
        if str(where) == str(folder):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(where)

    monkeypatch.setattr(os, "scandir", closed)
    code, printed, table = reported(inputs, capsys)
    assert code == 0 and f"left out: {folder}: Permission denied" in printed and list(table.method) == ["fastv"]


def frames(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {
        "no score": frame.drop(columns="score"),
        "no id": frame.drop(columns="id"),
        "scores in words": frame.assign(score="good"),
        "an infinite score": frame.assign(score=[float("inf"), *frame.score[1:]]),
        "a question twice": pd.concat([frame, frame[:1]]),
    }


@pytest.mark.parametrize("how", ["empty", "half", "flipped", *frames(pd.DataFrame({"score": [1.0], "id": ["a"]}))])
def test_damaged_samples_are_named_and_not_paired(inputs: Path, how: str, capsys) -> None:
    path = next(inputs.glob("fastv*")) / results.SAMPLES
    content = path.read_bytes()
    bytes_of = {"empty": b"", "half": content[: len(content) // 2], "flipped": content[:-40] + bytes(40)}
    if how in bytes_of:
        path.write_bytes(bytes_of[how])
    else:
        frames(pd.read_parquet(path))[how].to_parquet(path)
    code, printed, table = reported(inputs, capsys)
    assert code == 0 and f"{path}: " in printed and "its samples are left out" in printed and len(table) == 2
    assert "| unpaired |" in (inputs.parent / "out/table.md").read_text()


def test_a_file_of_more_samples_than_a_run_can_have_is_not_read(inputs: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("vtc.report.questions.MOST", 59)
    _, printed, _ = reported(inputs, capsys)
    assert printed.count("60 samples; at most 59") == 2


def test_numbers_that_contradict_the_samples_are_left_out(inputs: Path, capsys) -> None:
    path = next(inputs.glob("fastv*")) / results.SAMPLES
    frame = pd.read_parquet(path)
    for wrong in (frame.assign(score=1.0 - frame.score), frame[:-1], frame[1:]):
        wrong.to_parquet(path)
        code, printed, table = reported(inputs, capsys)
        assert code == 0 and "by what it is made of" in printed and list(table.method) == ["victor"]


def test_a_hundred_files_with_one_whole_and_none(inputs: Path, capsys) -> None:
    for at in range(99):
        (inputs / f"bad{at}").mkdir()
        (inputs / f"bad{at}" / results.RESULT).write_text("{" * at)
    code, printed, table = reported(inputs, capsys)
    assert code == 0 and printed.count("left out: ") == 99 and len(table) == 2
    for method in ("fastv", "victor"):
        (next(inputs.glob(f"{method}*")) / results.RESULT).write_text("")
    code, printed, table = reported(inputs, capsys)
    assert code == 2 and "no results there" in printed and "98 more" in printed and not len(table)
    with pytest.raises(UserError, match="101|98 more"):
        collect([inputs])


@pytest.mark.parametrize("label", ["x[/nope]", "[red]", "$\\nope$", "_hidden", "a|b", "<b>", "狗", "=1+1", "a" * 300])
def test_an_odd_label_is_shown_as_it_is(inputs: Path, label: str, capsys) -> None:
    path = next(inputs.glob("fastv*")) / results.RESULT
    result = results.load(path)
    result["method"]["name"] = label
    results.write(path.parent, result)
    code, printed, table = reported(inputs, capsys)
    assert code == 0 and label in set(table.method)
    assert "".join(label.split()) in "".join(printed.split()) or len(label) > 100
    html = (inputs.parent / "out/index.html").read_text()
    data = re.search(r'<script type="text/plain" id="data">(.*?)</script>', html, re.DOTALL)
    assert data is not None
    shown = json.loads(gzip.decompress(base64.b64decode(data[1])))
    assert label in {run["label"] for setting in shown["settings"] for run in setting["runs"]}
    markup = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)  # the page's own scripts write bold names
    assert "<b>" not in markup and list((inputs.parent / "out").glob("*.png"))
