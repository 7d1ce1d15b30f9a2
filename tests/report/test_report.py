"""The report reads result files alone. Here they are fabricated, with known numbers, in the schema of `vtc.results`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vtc import results
from vtc.cli import main
from vtc.errors import UserError
from vtc.report import plots, tables
from vtc.report.collection import collect
from vtc.report.runs import Run
from vtc.statistics import Estimate, compare, holm

TASKS = {"pocket_existence": "understanding", "pocket_counting": "understanding", "pocket_retrieval": "discriminative"}


def make(
    root: Path,
    method: str,
    tokens: int | None,
    score: float,
    *,
    created: str = "2026-01-01T00:00:00+00:00",
    run_id: str | None = None,
    stderr: float | None = 0.01,
    commit: str = "c" * 40,
    samples: dict[str, np.ndarray] | None = None,
    **config,
) -> Path:
    """A result file of one run whose tasks score `score`, `score` - 0.1 and `score` - 0.2."""
    folder = root / f"{method}-{tokens}-{created[:10]}-{run_id or ''}{'-'.join(map(str, config.values()))}"
    rows = []
    for at, (task, group) in enumerate(TASKS.items()):
        row = {
            "task": task,
            "group": group,
            "metric": "accuracy",
            "value": float(samples[task].mean()) if samples else score - 0.1 * at,
            "stderr": stderr,
            "n": 200,
        }
        row |= {"baseline": 0.9 - 0.1 * at, "retained": row["value"] / (0.9 - 0.1 * at), "p_value": 0.5}
        rows.append(row | {"blind": 0.3, "bag": 0.5 if group == "understanding" else None})
    options = {"fastv": {"layer": 2}, "avgpool": {"layer": 0, "dims": config.pop("dims", 2)}}.get(method, {})
    resolved = {
        "action": "evaluate",
        "backbone": {"name": "pocket", "pretrained": None, "dtype": "float32"},
        "method": {"name": method, **options},
        "tokens": tokens,
        "benchmark": {"name": "pocket", "tasks": list(TASKS), "limit": config.pop("limit", None)},
        "seed": 0,
        "output_dir": str(root),
        **config,
    }
    left = tokens or 144
    results.write(
        folder,
        {
            "run": {
                "id": run_id or f"{method}{tokens}",
                "created": created,
                "command": f"python -m vtc method={method} tokens={tokens}",
                "versions": {"vtc": "0.1.0", "torch": "2.15.0"},
                "git_commit": commit,
                "device": "cpu",
                "dtype": "float32",
                "attention": "sdpa",
            },
            "config": resolved,
            "backbone": {"name": "pocket"},
            "method": {"name": method, "tokens": tokens, "options": options},
            "checkpoint": None,
            "budget": {
                "requested": {"tokens": tokens},
                "visual_tokens_in": 144,
                "visual_tokens_out": left,
                "layer_average_tokens": left,
                "compression_ratio": 144 / left,
                "flops_ratio": 0.3 + 0.7 * left / 144,
            },
            "scores": rows,
            "efficiency": {"prefill_flops": 1e9 * left},
        },
    )
    if samples:
        columns = ("task", "id", "score")
        results.write_samples(
            folder,
            [
                dict(zip(columns, (t, str(i), float(s)), strict=True))
                for t, v in samples.items()
                for i, s in enumerate(v)
            ],
        )
    return folder


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
    plot = "pareto-{}-pocket-on-pocket.png"
    assert names == {"table.csv", "table.md", "index.html", plot.format("tokens"), plot.format("flops")}
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
    assert page.count("data:image/png;base64,") == 2
    assert "http://" not in page and "https://" not in page and '.png"' not in page, "one file, nothing to fetch"
    assert (folder / "table.md").read_text().count("| fwd2bot |") >= 3


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


def test_runs_of_one_method_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    make(tmp_path, "avgpool", 16, 0.5, dims=1)
    make(tmp_path, "avgpool", 16, 0.6, dims=2)
    make(tmp_path, "fastv", 16, 0.6)
    (setting,), notes = collect([tmp_path])
    assert setting.methods == ["avgpool (dims=1)", "avgpool (dims=2)", "fastv"] and not notes


def test_a_run_from_before_an_option_without_effect_has_the_same_label(tmp_path: Path) -> None:
    """`dry_run` came later than some results; it changes no number, so it tells no runs apart."""
    make(tmp_path, "fastv", 4, 0.5)
    make(tmp_path, "fastv", 16, 0.6, dry_run=False)
    (setting,), _ = collect([tmp_path])
    assert setting.methods == ["fastv"]


def test_other_samples_are_another_table(tmp_path: Path) -> None:
    make(tmp_path, "fastv", 16, 0.5)
    make(tmp_path, "fastv", 36, 0.5, limit=50)
    settings, _ = collect([tmp_path])
    assert [len(s.runs) for s in settings] == [1, 1]
    assert any("50 samples" in s.name for s in settings)


def edit(folder: Path, **changes) -> None:
    """Changes of a result file: `a__b=c` sets b of section a; `row__b=c` that of every row of scores."""
    result = results.load(folder)
    for key, value in changes.items():
        *where, last = key.split("__")
        for section in result["scores"] if where == ["row"] else [result]:
            for name in where if where != ["row"] else ():
                section = section[name]
            section[last] = value
    results.write(folder, result)


OTHER_QUESTIONS = {
    "limit": {"config__benchmark__limit": 50},
    "data": {"row__data": "e5f6"},
    "data, on the same path": {"row__data": "e5f6", "config__benchmark__data": "my.jsonl"},
    "prompt": {"config__benchmark__prompt": "{question} Briefly."},
    "metric": {"row__metric": "f1"},
    "version of the task": {"row__version": "2.0"},
    "full score": {"row__scale": 100.0},
    "subset": {"config__benchmark__subset": "b"},
    "split": {"config__benchmark__split": "dev"},
    "columns": {"config__benchmark__columns": {"question": "q"}},
    "benchmark": {"config__benchmark__name": "jsonl"},
    "backbone": {"backbone__name": "llava15_7b"},
    "weights of the backbone": {"config__backbone__pretrained": "other/base"},
}


@pytest.mark.parametrize("changes", OTHER_QUESTIONS.values(), ids=OTHER_QUESTIONS)
def test_other_questions_are_another_table_with_another_name(tmp_path: Path, changes: dict, monkeypatch) -> None:
    scores = {t: np.arange(200) % 2 for t in TASKS}
    for method in ("fastv", "victor"):
        folder = make(tmp_path / "outputs", method, 16, 0.5, samples=scores)
        edit(folder, row__data="a1b2", row__version="1.0")
    edit(folder, **changes)
    settings, notes = collect([tmp_path])
    assert [len(s.runs) for s in settings] == [1, 1] and not notes
    assert len({s.name for s in settings}) == 2 and all("1 run of" in s.about for s in settings)
    assert not any(tables.differences(s) for s in settings)
    monkeypatch.chdir(tmp_path)
    assert main(["action=report"]) == 0


def test_other_tasks_are_another_table(tmp_path: Path) -> None:
    for method in ("fastv", "victor"):
        folder = make(tmp_path, method, 16, 0.5)
    result = results.load(folder)
    results.write(folder, result | {"scores": result["scores"][:2]})
    settings, _ = collect([tmp_path])
    assert {s.name for s in settings} == {"pocket on pocket (3 tasks)", "pocket on pocket (2 tasks)"}


OTHER_RUNS = {
    "seed": {"config__seed": 1},
    "dtype": {"config__backbone__dtype": "bfloat16"},
    "quantisation": {"config__backbone__quantization": "4bit"},
    "frames": {"config__backbone__frames": 8},
    "checkpoint": {"config__checkpoint": "a/mine/weights"},
    "batch size": {"config__batch_size": 8},
    "option": {"config__method": {"name": "fastv", "layer": 3}},
    "budget in other words": {"config__ratio": 0.11, "config__tokens": None},
    "an option that the earlier version didn't write": {"config__method": {"name": "fastv"}},
}


@pytest.mark.parametrize("changes", OTHER_RUNS.values(), ids=OTHER_RUNS)
def test_rows_of_one_table_have_different_names(tmp_path: Path, changes: dict) -> None:
    for at in ("one", "two"):
        folder = make(tmp_path / at, "fastv", 16, 0.5, run_id=at, checkpoint="a/other/weights", batch_size=32)
        edit(folder, run__id=at)
    edit(folder, **changes)
    (setting,), notes = collect([tmp_path])
    assert len({run.label for run in setting.runs}) == len(setting.runs) == 2 and not notes
    assert all(label.startswith("fastv") for label in setting.methods)


def test_versions_that_differ_are_stated(tmp_path: Path) -> None:
    for method, version in (("fastv", "0.7.3"), ("victor", "0.8.0")):
        edit(make(tmp_path, method, 16, 0.5), run__versions={"lmms_eval": version})
    (setting,), _ = collect([tmp_path])
    assert any("versions of lmms_eval: 0.7.3, 0.8.0" in note for note in setting.notes)


@pytest.mark.parametrize(("path", "others", "together"), [(None, 1, True), (None, 2, False), ("my.jsonl", 1, False)])
def test_a_row_that_does_not_state_its_data_stands_where_it_must_belong(tmp_path, path, others, together) -> None:
    """A result of an earlier version: with the one table that it fits, where the data come with the benchmark."""
    make(tmp_path, "fastv", 16, 0.5)
    for at in range(others):
        edit(make(tmp_path, "victor", 16, 0.5, run_id=str(at)), row__data=f"d{at}")
    for file in results.find([tmp_path]):
        edit(file.parent, config__benchmark__data=path)
    settings, _ = collect([tmp_path])
    assert sorted(len(s.runs) for s in settings) == ([2] if together else [1] * (others + 1))
    assert together == any("don't state their data" in note for s in settings for note in s.notes)


def test_runs_on_other_answers_are_not_paired(tmp_path: Path) -> None:
    """Without a statement of the data the targets tell: the same ids, other answers."""
    for method, target in (("fastv", "cat"), ("victor", "dog")):
        folder = make(tmp_path, method, 16, 0.5, samples={t: np.arange(200) % 2 for t in TASKS})
        frame = results.samples(folder).assign(target=target)
        frame.to_parquet(folder / results.SAMPLES)
    (setting,), _ = collect([tmp_path])
    (row,) = tables.differences(setting)
    assert row["test"] == "unpaired" and compare(*(r.path for r in setting.runs)) == {}


def test_the_baseline_is_the_one_that_results_name(tmp_path: Path) -> None:
    """Three runs are called `none`: two of them have weights of their own, and come first by name."""
    for at, score in (("a", 0.5), ("b", 0.6)):
        trained = make(tmp_path, "none", None, score, run_id=at, checkpoint=f"{at}/weights")
        edit(trained, checkpoint={"path": f"{at}/weights"}, baseline={"id": "z"})
    edit(make(tmp_path, "none", None, 0.9, run_id="z"), baseline=None)
    make(tmp_path, "fastv", 16, 0.5)
    (setting,), _ = collect([tmp_path])
    assert [run.id for run in setting.runs if run.is_baseline] == ["z"] and setting.runs[0].id == "z"
    assert setting.reference() == pytest.approx(0.8) == setting.runs[0].score().value
    assert len([label for label in setting.methods if label.startswith("none (")]) == 2
    assert [run.retained() for run in setting.runs if run.method == "none"] == pytest.approx([1.0, 0.5, 0.625])


def test_rows_with_different_baselines_are_stated(tmp_path: Path) -> None:
    make(tmp_path, "fastv", 16, 0.5)
    edit(make(tmp_path, "victor", 16, 0.5), row__baseline=0.5, row__retained=None)
    (setting,), _ = collect([tmp_path])
    assert any(
        "different baselines" in note and "0.8000 (1)" in note and "0.5000 (1)" in note for note in setting.notes
    )


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
    places = [x for line in ax.lines if len(line.get_xdata()) == 1 for x in line.get_xdata()]
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
