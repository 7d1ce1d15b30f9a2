"""A table is of the same questions: which runs stand in one, what tells them apart, what they are compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fabricated import TASKS, edit, make

from vtc import results
from vtc.cli import main
from vtc.report import tables
from vtc.report.collection import collect
from vtc.statistics import compare


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
