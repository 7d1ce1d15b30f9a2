"""The one table: what it says of methods that draw nothing, and of the options that docstrings speak of."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import equal
import pytest
import yaml

from vtc import results, shipped
from vtc.ablations.claims import judge
from vtc.ablations.experiments import Claim
from vtc.registry import methods

ROOT = shipped.root()
OPTIONS = yaml.safe_load((ROOT / equal.TABLE).read_text())["options"]


def test_what_was_not_trained_is_the_same_under_every_seed() -> None:
    runs = equal.outcomes(ROOT)
    assert {*runs["fastv-16"]} == {0, 1, 2} and len({id(run) for run in runs["fastv-16"].values()}) == 1
    assert all(run.training for name in ("none", "victor-16") for run in runs[name].values())
    claims = [Claim("", "", "fastv-16", other, ("understanding",)) for other in ("random-16", "victor-16")]
    alone, beside = judge(claims, runs)
    assert alone.seeds == 1, "three times the same rows are one"
    assert beside.seeds == len(runs["victor-16"])


def test_rows_have_the_weights_that_their_table_says() -> None:
    """Shipped ones are those of `checkpoint=auto`, of the same method and budget; no row that was trained alike is."""
    for name, own in equal.pieces(ROOT).items():
        for tokens, rows in own.items():
            for row in rows:
                checkpoint = row.result["checkpoint"] or {"path": "", "manifest": {}}
                is_shipped = checkpoint["path"].startswith("benchmarks/pocket/weights/")
                assert is_shipped == (name.endswith(equal.SHIPPED) or name == equal.STAGED), row.folder
                if is_shipped:
                    method = name.removesuffix(equal.SHIPPED) if name != equal.STAGED else "llavolta"
                    assert checkpoint["manifest"]["method"] == row.result["method"]["name"] == method
                    assert checkpoint["manifest"]["tokens"] in (None, tokens), row.folder


@pytest.mark.parametrize("name", OPTIONS)
def test_a_docstring_says_what_an_option_changes(name: str) -> None:
    """Where the table has that row; the docstring's numbers are the table's."""
    done, method = equal.pieces(ROOT), OPTIONS[name]["method"]
    words = re.sub(r"\s+", " ", inspect.getdoc(methods.get(method)) or "")
    if name not in done:
        return
    found = equal.estimate(done[name][16], done[method][16])
    said = rf"{found['difference']:+.3f}.*\[{found['low']:+.3f}, {found['high']:+.3f}\]"
    assert re.search(said.replace("+", r"\+"), words), f"{name}: {said}"


def test_the_task_that_is_furthest_off_on_other_scenes_is_named(tmp_path: Path) -> None:
    assert "None was scored again yet" in equal.scenes_part(tmp_path)
    task = {"score": 0.7, "published": 0.75, "z": -1.0}
    tasks = {"a": task, "b": task | {"z": -2.4, "score": 0.643, "published": 0.733}, "mean": task | {"z": 0.3}}
    results.write_json(tmp_path / equal.RESULTS / equal.SCENES, {"x-16-s0": {"1": {"commit": "", "tasks": tasks}}})
    row = "| `x-16-s0` | 1 | 0.700 | 0.750 | +0.3 | b: 0.643, published 0.733 (z -2.4) |"
    assert row in equal.scenes_part(tmp_path)
