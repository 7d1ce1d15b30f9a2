"""The papers' order of methods: which of a pair is better there, and what the rows of the one table say."""

from __future__ import annotations

from pathlib import Path

import equal
import orders
from omegaconf import OmegaConf

from vtc import shipped
from vtc.registry import methods

ROOT = shipped.root()


def test_pairs_are_compared_over_what_both_report() -> None:
    x, y = orders.relative([50.0, None, 30.0], [40.0, 90.0, None], [100.0, 100.0, 60.0])
    assert (x, y) == (0.5, 0.4), "only the first column counts"
    rows = {"a": [50.0, 5.0], "b": [60.0, None]}
    found = orders.pairs({"whole": [100.0, 10.0], "groups": [{"at": 4, "rows": rows}]})
    assert found == [(4, "b", "a", "60.0 % against 50.0 %")]


def test_every_method_of_the_file_is_one_of_ours_and_its_scores_are_complete() -> None:
    entries = OmegaConf.to_container(OmegaConf.load(ROOT / orders.FILE))
    for order in entries:
        for _, better, worse, _ in orders.pairs(order):
            assert better != worse and {better, worse} <= set(methods.names())
        for group in order.get("groups", ()):
            assert all(len(row) == len(order["whole"]) for row in group["rows"].values())


def test_verdicts_are_those_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / orders.FILE).write_text(
        "- {source: A paper, about: nothing, tasks: understanding, pairs: [{at: 16, better: random, worse: fastv},"
        " {at: 16, better: victor, worse: fastv}, {at: 5, better: victor, worse: fastv}]}"
    )
    text = orders.part(tmp_path, equal.outcomes(ROOT))
    assert text.count("| disagrees |") == 1 and text.count("| agrees |") == 1 and text.count("| not run |") == 1
    assert text.rstrip().endswith("Of 3 pairs: 1 agrees, 1 disagrees, 0 can't tell, 1 not run.")
