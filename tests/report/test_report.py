"""The report reads result files alone. Here they are fabricated, with known numbers, in the schema of `vtc.results`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricated import TASKS, edit, make

from vtc import results
from vtc.cli import main
from vtc.errors import UserError
from vtc.report import plots, tables
from vtc.report.collection import collect
from vtc.report.runs import Run
from vtc.statistics import Estimate, compare, holm


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """What a sweep leaves: the baseline and four methods at three budgets."""
    root = tmp_path / "outputs"
    make(root, "none", None, 0.9)
    for method, loss in (("fwd2bot", 0.02), ("victor", 0.04), ("llavolta", 0.15), ("fastv", 0.2)):
        for tokens in (4, 16, 36):
            make(root, method, tokens, 0.9 - loss * (1.8 - 0.3 * math.log2(tokens / 4)))
    return root


def test_the_command_writes_everything(sweep: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["action=report"]) == 0
    out = capsys.readouterr().out
    folder = sweep / "report"
    names = {p.name for p in folder.iterdir()}
    kinds = ("pareto-tokens", "pareto-flops", "curves", "tasks", "significance")
    assert names == {"table.csv", "table.md", "table.tex", "index.html"} | {f"{k}-pocket-on-pocket.png" for k in kinds}
    for word in ("fwd2bot", "victor", "llavolta", "fastv", "retained", "13 runs"):
        assert word in out

    table = pd.read_csv(folder / "table.csv")
    assert len(table) == 13 and table.method[0] == "none"
    row = table[(table.method == "fastv") & (table.tokens == 4)].iloc[0]
    assert row.pocket_existence == pytest.approx(0.9 - 0.2 * 1.8)
    assert row["mean"] == pytest.approx(row.pocket_existence - 0.1)
    assert row.mean_ci95 == pytest.approx(1.96 * 0.01 / math.sqrt(3), rel=1e-3)
    assert row.mean_retained == pytest.approx(row["mean"] / 0.8)
    assert row.understanding == pytest.approx(row.pocket_existence - 0.05)
    assert row.discriminative == pytest.approx(row.pocket_existence - 0.2)

    page = (folder / "index.html").read_text()
    assert page.count('id="plotly"') == 1 and page.count('id="datatables"') == 1
    assert "http://" not in page and "https://" not in page and '.png"' not in page, "one file, nothing to fetch"
    assert (folder / "table.md").read_text().count("| fwd2bot |") >= 3


def test_a_budget_that_is_a_mean_stands_beside_its_like(sweep: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    """It is told from the run in which each picture has as many, in the rows and in the tests of differences."""
    make(sweep, "prunesid", 16, 0.8, stderr=0.001)
    folder = make(sweep, "prunesid", 16, 0.85, stderr=0.001, budget="mean", run_id="mean")
    spread = {"tokens_sd": 2.5, "tokens_least": 9.0, "tokens_most": 23.0, "flops_ratio": 0.4}
    edit(folder, budget__visual_tokens_out=15.96, budget__spread=spread)
    monkeypatch.chdir(tmp_path)
    assert main(["action=report", "report.figures=[]"]) == 0
    table = pd.read_csv(sweep / "report" / "table.csv").set_index("method")
    rows = table[table.index.str.startswith("prunesid")]
    each, mean = "prunesid (budget=each)", "prunesid (budget=mean)"
    assert sorted(rows.index) == [each, mean] and set(rows.tokens) == {16}
    assert rows.tokens_sd[mean] == 2.5 and math.isnan(rows.tokens_sd[each])
    assert table.tokens_sd.notna().sum() == 1
    page = (sweep / "report" / "table.md").read_text()
    assert f"| 16 | {mean} | {each} |" in page or f"| 16 | {each} | {mean} |" in page


def test_figures_for_a_paper(sweep: Path, tmp_path: Path, monkeypatch) -> None:
    """Each figure that the results have the numbers for, in each kind of file; letters of a PDF stay letters."""
    for path in sorted(sweep.rglob("fastv*/result.json")) + sorted(sweep.rglob("victor*/result.json")):
        result = json.loads(path.read_text())
        result["checkpoint"] = {"manifest": {"seconds": 3600.0 if "fastv" in str(path) else 7200.0}}
        costs = {"kv_cache_bytes": 1000, "ttft_ms": {"median": 0.8}, "throughput": {"2": 10.0, "128": 20.0}}
        result["efficiency"] |= costs
        path.write_text(json.dumps(result))
    monkeypatch.chdir(tmp_path)
    assert main(["action=report", "report.figures=[svg,pdf]", "report.samples=0"]) == 0
    drawn = {p.name for p in (sweep / "report").iterdir() if p.suffix in (".png", ".svg", ".pdf")}
    kinds = [*(f"pareto-{axis}" for axis in plots.AXES), "curves", "tasks", "significance", "training"]
    assert drawn == {f"{kind}-pocket-on-pocket{s}" for kind in kinds for s in (".svg", ".pdf")}
    assert all("victor" in (sweep / f"report/{kind}-pocket-on-pocket.svg").read_text() for kind in kinds)
    assert main(["action=report", "report.figures=[]", "report.output=none"]) == 0
    assert not list(Path("none").glob("*.png"))
    assert main(["action=report", "report.figures=[gif]"]) == 2


def test_it_says_what_it_is_doing(sweep: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["action=report"]) == 0
    assert "13 runs in 1 table, 18 pairs to compare" in capsys.readouterr().out
    seen: list[Path] = []
    collect([sweep], lambda paths: [seen.append(path) or path for path in paths])
    (setting,), _ = collect([sweep])
    assert len(seen) == 13
    steps: list[int] = []
    tables.differences(setting, lambda: steps.append(1))
    assert len(steps) == 18


def test_plots_are_images_of_a_readable_size(sweep: Path, tmp_path: Path) -> None:
    from PIL import Image

    (setting,), _ = collect([sweep])
    for axis in ("tokens", "flops"):
        file = plots.pareto(setting, axis, tmp_path / f"{axis}.png")
        assert file is not None
        assert Image.open(file).size[0] > 1000
    assert len(set(plots.PALETTE)) == len(plots.PALETTE) >= 8


def test_no_plot_of_a_single_point(tmp_path: Path) -> None:
    make(tmp_path, "fastv", 16, 0.7)
    (setting,), _ = collect([tmp_path])
    assert plots.pareto(setting, "tokens", tmp_path / "x.png") is None and not (tmp_path / "x.png").exists()


def test_of_equal_configurations_the_newest_is_kept_and_other_code_is_stated(tmp_path: Path) -> None:
    make(tmp_path, "fastv", 16, 0.5, created="2026-01-01T00:00:00+00:00", run_id="old")
    make(tmp_path, "fastv", 16, 0.7, created="2026-02-01T00:00:00+00:00", run_id="new")
    (setting,), notes = collect([tmp_path])
    assert [r.id for r in setting.runs] == ["new"]
    assert len(notes) == 1 and "different weights or code" in notes[0] and "old" in notes[0]


def test_rows_from_different_code_are_stated(tmp_path: Path) -> None:
    make(tmp_path, "fastv", 16, 0.5, commit="a" * 40)
    make(tmp_path, "victor", 16, 0.5, commit="b" * 40)
    (setting,), _ = collect([tmp_path])
    assert any("git commits" in note and "aaaa" in note and "bbbb" in note for note in setting.notes)


def test_commits_that_change_no_number_are_not_stated(tmp_path: Path) -> None:
    """Runs that carry the hash of the code are compared by it."""
    for method, commit, code in (
        ("fastv", "a" * 40, "same"),
        ("victor", "b" * 40, "same"),
        ("avgpool", "b" * 40, "else"),
    ):
        path = make(tmp_path, method, 16, 0.5, commit=commit) / results.RESULT
        result = results.load(path)
        result["run"]["code"] = code
        results.write_json(path, result)
    (setting,), _ = collect([tmp_path])
    assert any("hashes" in note and "same" in note and "else" in note for note in setting.notes)
    (setting,), _ = collect([p for p in tmp_path.rglob("result.json") if "avgpool" not in str(p)])
    assert not any("code" in note for note in setting.notes)


@pytest.mark.parametrize("count", [2, 5, plots.MOST + 5])
def test_methods_at_one_budget_stand_side_by_side(tmp_path: Path, count: int, monkeypatch) -> None:
    from matplotlib import pyplot as plt

    for at in range(count):
        make(tmp_path, f"method{at:02d}", 16, 0.9 - 0.01 * at)
    (setting,), _ = collect([tmp_path])
    figures: list = []
    monkeypatch.setattr(plt, "close", figures.append)
    assert plots.pareto(setting, "tokens", tmp_path / "plot.png") is not None
    ax = figures[0].axes[0]
    low, high = ax.get_xlim()
    drawn = [line for line in ax.lines if len(line.get_xdata()) == 1 or line.get_label() == "others"]
    places = [x for line in drawn for x in line.get_xdata() if math.isfinite(x)]
    assert low < min(places) < 16 < max(places) < high < 32 and len({round(x, 6) for x in places}) == count
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["16"]
    named = ax.get_legend_handles_labels()[1]
    assert "method00" in named and ("others" in named) == (count > plots.MOST)


def test_a_broken_file_is_named_and_left_out(sweep: Path) -> None:
    (sweep / "broken").mkdir()
    (sweep / "broken" / "result.json").write_text("{")
    (setting,), notes = collect([sweep])
    assert len(setting.runs) == 13
    assert len(notes) == 1 and "broken" in notes[0]


def test_inputs_may_be_files_and_folders(sweep: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = sorted(sweep.rglob("result.json"))[:2]
    output = tmp_path / "elsewhere"
    assert main(["action=report", f"report.inputs=[{files[0]},{files[1].parent}]", f"report.output={output}"]) == 0
    assert len(pd.read_csv(output / "table.csv")) == 2


def test_floors_and_baseline_are_in_the_table(sweep: Path) -> None:
    (setting,), _ = collect([sweep])
    header, rows = tables.cells(setting)
    assert header[:4] == ["method", "tokens", "FLOPs", "mean"] and "existence" in header
    assert rows[0][0] == "none" and rows[0][4] == "100.0 %"
    blind = next(r for r in rows if r[0] == "blind floor")
    assert blind[3] == "0.300"
    bag = next(r for r in rows if r[0] == "bag-of-attributes floor")
    assert bag[3] == "–" and bag[5] == "0.500", "a floor that a task doesn't have is not averaged over the others"


def test_a_crowded_plot_tells_the_pareto_front_apart(tmp_path: Path) -> None:
    for at in range(plots.MOST + 2):
        make(tmp_path, f"method{at:02d}", 16, 0.9 if at == 3 else 0.5)
    make(tmp_path, "method05", 4, 0.4)
    make(tmp_path, "method06", 4, 0.3)
    (setting,), _ = collect([tmp_path])
    assert plots.front(setting.runs, lambda run: run.tokens) == ["method03", "method05"]
    coloured = plots.chosen(setting, setting.runs, lambda run: run.tokens)
    assert coloured[:2] == ["method03", "method05"], "and of the others, alike here, the first"
    assert len(coloured) == plots.MOST and "method11" not in coloured
    assert plots.pareto(setting, "tokens", tmp_path / "plot.png") is not None


def test_costs_are_columns_where_they_were_measured_and_what_is_slower_is_told(tmp_path: Path) -> None:
    for method, speedup in (("fastv", 1.25), ("victor", 0.8)):
        file = make(tmp_path, method, 16, 0.6) / "result.json"
        result = json.loads(file.read_text())
        result["efficiency"] |= {"ttft_speedup": speedup, "method_share": 0.05, "flops_ratio_with_vision": 0.7}
        file.write_text(json.dumps(result))
    (setting,), _ = collect([tmp_path])
    header, rows = tables.cells(setting)
    assert header[2:7] == ["FLOPs", "with tower", "speed-up", "own work", "mean"]
    assert [row[3:6] for row in rows[:2]] == [["70.0 %", "1.25×", "5 %"], ["70.0 %", "0.80×", "5 %"]]
    (told,) = [note for note in setting.notes if "slower" in note]
    assert "victor, 16 tokens (0.80×)" in told and "fastv" not in told


def test_differences_without_samples_are_a_z_test(tmp_path: Path) -> None:
    make(tmp_path, "fastv", 16, 0.6)
    make(tmp_path, "victor", 16, 0.63)
    (setting,), _ = collect([tmp_path])
    (row,) = tables.differences(setting)
    z = 0.03 / math.hypot(0.01 / math.sqrt(3), 0.01 / math.sqrt(3))
    assert (row["better"], row["worse"], row["test"]) == ("victor", "fastv", "unpaired")
    assert row["p_value"] == pytest.approx(math.erfc(z / math.sqrt(2)))


def test_differences_with_samples_are_paired(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = {t: rng.integers(0, 2, 200).astype(float) for t in TASKS}
    better = {t: np.where(rng.random(200) < 0.1, 1.0, v) for t, v in base.items()}
    make(tmp_path, "fastv", 16, 0.5, stderr=0.05, samples=base)
    make(tmp_path, "victor", 16, 0.55, stderr=0.05, samples=better)
    (setting,), _ = collect([tmp_path])
    (row,) = tables.differences(setting)
    assert row["test"] == "paired" and row["p_value"] < 0.001, "pairs see what two wide intervals hide"


def test_methods_at_other_budgets_are_not_paired(sweep: Path) -> None:
    (setting,), _ = collect([sweep])
    rows = tables.differences(setting)
    assert len(rows) == 3 * 6 and {r["tokens"] for r in rows} == {4, 16, 36}
    for tokens in (4, 16, 36):
        mine = [r for r in rows if r["tokens"] == tokens]
        assert [r["p_holm"] for r in mine] == holm([r["p_value"] for r in mine]), "corrected within a budget"
    assert all(r["difference"] >= 0 for r in rows)


@pytest.mark.parametrize(
    ("p", "expected"),
    [([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]), ([0.5, None], [0.5, None]), ([], []), ([0.9, 0.8], [1.0, 1.0])],
)
def test_holm(p: list, expected: list) -> None:
    got = holm(p)
    assert [g is None for g in got] == [e is None for e in expected]
    assert [g for g in got if g is not None] == pytest.approx([e for e in expected if e is not None])


def test_a_mean_knows_its_error_only_where_all_parts_do() -> None:
    mean = Estimate.mean([Estimate(0.4, 0.03), Estimate(0.6, 0.04)])
    assert mean.value == pytest.approx(0.5) and mean.stderr == pytest.approx(0.025)
    assert Estimate.mean([Estimate(0.4, 0.03), Estimate(0.6)]).half is None


def test_markup_in_a_result_file_is_text(tmp_path: Path, monkeypatch) -> None:
    folder = make(tmp_path / "outputs", "fastv", 16, 0.5)
    file = folder / "result.json"
    file.write_text(file.read_text().replace("python -m vtc", "<script>alert(1)</script>"))
    monkeypatch.chdir(tmp_path)
    assert main(["action=report"]) == 0
    assert "<script>alert" not in (tmp_path / "outputs/report/index.html").read_text()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="no results"):
        collect([tmp_path])


def test_averages_of_a_report_are_of_shares(tmp_path: Path) -> None:
    """MME's points weigh as much as an accuracy, in the score, its error, what is retained, and paired tests."""
    paths = []
    for method, tokens, points in (("none", None, 1.0), ("fastv", 16, 0.5)):
        path = make(tmp_path, method, tokens, 0.9) / results.RESULT
        result = json.loads(path.read_text())
        first, second = result["scores"][:2]
        first |= {
            "value": 1000.0 * points,
            "stderr": 20.0,
            "baseline": 1000.0,
            "scale": 2000.0,
            "retained": points,
            "n": 50,
        }
        second |= {"value": 0.8, "stderr": 0.01, "baseline": 0.8, "scale": 1.0, "retained": 1.0, "n": 50}
        result["scores"] = [first, second]
        path.write_text(json.dumps(result))
        scores = {first["task"]: 2000.0 * points * (np.arange(50) % 2), second["task"]: 1.0 * (np.arange(50) < 40)}
        rows = [
            {"task": t, "id": str(i), "score": float(s)} for t, all_of in scores.items() for i, s in enumerate(all_of)
        ]
        results.write_samples(path.parent, rows)
        paths.append(path)
    plain, pruned = (Run.read(path) for path in paths)
    assert plain.score().value == pytest.approx((0.5 + 0.8) / 2) and pruned.score().value == pytest.approx(1.05 / 2)
    assert pruned.score().stderr == pytest.approx(np.hypot(0.01, 0.01) / 2)
    assert pruned.retained() == pytest.approx(1.05 / 1.3) and pruned.scores[first["task"]].value == 500.0
    found = compare(*paths)
    assert found["all"]["a"] == pytest.approx((found[first["task"]]["a"] / 2000 + found[second["task"]]["a"]) / 2)
    assert abs(found["all"]["difference"]) < 1
