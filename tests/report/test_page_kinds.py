"""Pages of few results and of many: each opens without a complaint, wide and narrow, and shows what there is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fabricated import TASKS, make
from reader import NEEDED, Reader

from vtc import results
from vtc.cli import main

pytestmark = NEEDED


def scores(seed: int, n: int = 200) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {task: rng.integers(0, 2, n).astype(float) for task in TASKS}


def one_budget(root: Path) -> None:
    make(root, "none", None, 0.9)
    for at, method in enumerate(("fastv", "victor", "fwd2bot", "avgpool")):
        make(root, method, 16, 0.8 - 0.05 * at)


def one_run(root: Path) -> None:
    make(root, "fastv", 16, 0.7)


def one_method(root: Path) -> None:
    make(root, "none", None, 0.9)
    for tokens in (4, 16, 36):
        make(root, "fastv", tokens, 0.5 + tokens / 100)


def no_baseline(root: Path) -> None:
    for method in ("fastv", "victor"):
        for tokens in (4, 16):
            make(root, method, tokens, 0.5 + tokens / 100)


def forty_methods(root: Path) -> None:
    make(root, "none", None, 0.9)
    for at in range(40):
        for tokens in (4, 16, 36):
            make(root, f"method_of_a_long_name_{at:02d}", tokens, 0.85 - 0.01 * at - 0.5 / tokens)


def page(root: Path, *words: str) -> Path:
    runs, out = root / "runs", root / "report"
    assert main(["action=report", f"report.inputs=[{runs}]", f"report.output={out}", "report.figures=[]", *words]) == 0
    return out / "index.html"


KINDS = {  # what makes the results, and how many rows the page opens on
    "one budget": (one_budget, 5),
    "one run": (one_run, 1),
    "one method": (one_method, 2),
    "no baseline": (no_baseline, 2),
    "40 methods": (forty_methods, 41),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_of_any_size_opens_and_draws(kind: str, tmp_path: Path, browser) -> None:
    results_of, rows = KINDS[kind]
    results_of(tmp_path / "runs")
    file = page(tmp_path)
    for width in (1400, 390):
        reader = Reader(browser, file, width=width)
        assert len(reader.rows()) == rows
        assert reader.page.evaluate("document.documentElement.scrollWidth") == width
        drawn = {figure: reader.drawn(figure) for figure in ("pareto", "curves", "heat", "matrix")}
        assert drawn["pareto"] and drawn["heat"]
        assert bool(drawn["curves"]) == (kind not in ("one budget", "one run"))
        assert bool(drawn["matrix"]) == (kind not in ("one run", "one method"))
        assert not reader.page.is_visible("#hard") and not reader.page.is_visible("#training")
        if kind == "40 methods":
            assert len([t for t in drawn["pareto"] if t["meta"]]) == 40
        reader.done()


def test_seeds_are_one_row_with_their_spread(tmp_path: Path, browser) -> None:
    make(tmp_path / "runs", "none", None, 0.9)
    make(tmp_path / "runs", "victor", 16, 0.5)
    for seed, score in enumerate((0.6, 0.7, 0.8)):
        make(tmp_path / "runs", "fastv", 16, score, seed=seed)
    reader = Reader(browser, page(tmp_path))
    rows = {row[1]: row for row in reader.rows()}
    assert set(rows) == {"none", "victor", "fastv mean of 3 seeds"}
    assert rows["fastv mean of 3 seeds"][3].startswith("0.600"), "0.7, less 0.1 in the mean over the tasks"
    said = reader.opened("tr:has-text('seeds')")
    assert "0.600 ± 0.100" in said and "standard deviation of 3 seeds" in said
    reader.page.click("#run button.close")
    reader.page.select_option("#seeds", "each")
    reader.page.wait_for_function("document.querySelectorAll('#board-table tbody tr').length === 5")
    assert "seeds=each" in reader.page.evaluate("location.hash")
    reader.done()


def test_hard_samples_controls_and_printed_numbers(tmp_path: Path, browser) -> None:
    for at, (method, tokens) in enumerate([("none", None), ("downsample", 16), ("fastv", 16), ("fastv", 4)]):
        make(tmp_path / "runs", method, tokens, 0.5, samples=scores(at))
    grey = make(tmp_path / "grey", "fastv", 16, 0.3)
    result = json.loads((grey / results.RESULT).read_text())
    result["config"]["benchmark"]["picture"] = "grey"
    results.write(tmp_path / "runs/grey", result)
    reader = Reader(browser, page(tmp_path))
    whole, small, mine = scores(0), scores(1), scores(2)
    hard = [mine[t][i] for t in TASKS for i in range(200) if whole[t][i] > small[t][i]]
    cells = [c.inner_text() for c in reader.page.query_selector_all("#hard-table tbody tr:has-text('fastv') td")]
    assert cells[0].startswith("fastv") and cells[1].startswith(f"{np.mean(hard):.3f} ±") and cells[2] == str(len(hard))
    control = reader.page.inner_text("#control-table")
    assert "grey" in control and "0.200 ±" in control, "0.3, less 0.1 in the mean over the tasks"
    reader.done()
