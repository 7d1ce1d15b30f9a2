"""The papers' order of methods: which of a pair is better there, and which runs it is held against."""

from __future__ import annotations

from pathlib import Path

import orders
from omegaconf import OmegaConf
from readme import committed

from vtc import shipped
from vtc.registry import methods
from vtc.report.runs import Run


def test_pairs_are_compared_over_what_both_report() -> None:
    x, y = orders.relative([50.0, None, 30.0], [40.0, 90.0, None], [100.0, 100.0, 60.0])
    assert (x, y) == (0.5, 0.4), "only the first column counts"
    rows = {"a": [50.0, 5.0], "b": [60.0, None]}
    found = orders.pairs({"whole": [100.0, 10.0], "groups": [{"at": 4, "rows": rows}]})
    assert found == [(4, "b", "a", "60.0 % against 50.0 %")]


def test_every_method_of_the_file_is_one_of_ours_and_its_scores_are_complete() -> None:
    entries = OmegaConf.to_container(OmegaConf.load(shipped.root() / orders.FILE))
    for order in entries:
        for _, better, worse, _ in orders.pairs(order):
            assert better != worse and {better, worse} <= set(methods.names())
        for group in order.get("groups", ()):
            assert all(len(row) == len(order["whole"]) for row in group["rows"].values())


def test_a_methods_own_settings_are_taken() -> None:
    runs = [Run.read(path) for path in committed(shipped.root())]
    for run in runs:
        run.label = "random (layer=2)" if run.path.parent.name.startswith("pocket-random-layer2") else run.method
    found = orders.run_of(runs, "random", 4)
    assert found is not None and found.path.parent.name == "pocket-random-4"
    assert orders.run_of(runs, "random", 5) is None


def test_verdicts_are_those_of_the_runs(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / orders.FILE).write_text(
        "- {source: A paper, about: nothing, tasks: understanding, pairs: [{at: 4, better: random, worse: fastv},"
        " {at: 4, better: victor, worse: fastv}, {at: 5, better: victor, worse: fastv}]}"
    )
    runs = [Run.read(path) for path in committed(shipped.root())]
    text = orders.part(tmp_path, runs)
    assert text.count("| disagrees |") == 1 and text.count("| agrees |") == 1 and text.count("| not run |") == 1
    assert text.rstrip().endswith("Of 3 pairs: 1 agrees, 1 disagrees, 0 can't tell, 1 not run.")
