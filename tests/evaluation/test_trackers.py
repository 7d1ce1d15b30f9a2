"""Trackers of evaluations: each is told a real result, offline, and holds its numbers; once, and never at its cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vtc import trackers
from vtc.cli import main
from vtc.evaluation import track
from vtc.shipped import root


@pytest.fixture
def result() -> dict:
    """A committed result."""
    file = next(f for f in sorted((root() / "benchmarks/results").rglob("result.json")) if "fastv" in f.parent.name)
    return json.loads(file.read_text())


def expected(result: dict) -> dict[str, float]:
    row = result["scores"][0]
    return {
        f"{row['task']}/{row['metric']}": row["value"],
        "budget/flops_ratio": result["budget"]["flops_ratio"],
    }


def test_tensorboard_holds_the_scores(result: dict, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert [*track.tell(["tensorboard"], result, tmp_path)] == [f"told tensorboard: {tmp_path.name}"]
    files = [*(tmp_path / "trackers").rglob("events.out.tfevents*")]
    values = {}
    for file in files:
        events = EventAccumulator(str(file))
        events.Reload()
        values |= {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}
    for key, value in expected(result).items():
        assert values[key] == pytest.approx(value, rel=1e-5)
    assert [*track.tell(["tensorboard"], result, tmp_path)] == [], "it knows this result"
    result["scores"][0]["value"] += 0.5
    assert len([*track.tell(["tensorboard"], result, tmp_path)]) == 1, "and not this one"


def test_wandb_holds_the_scores_offline(result: dict, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert [*track.tell(["wandb"], result, tmp_path)] == [f"told wandb: {tmp_path.name}"]
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    assert result["run"]["id"] in file.name
    content = file.read_bytes()
    for key in expected(result):
        assert key.encode() in content
    assert b"method.name" in content


def test_trackio_holds_the_scores(result: dict, tmp_path: Path, monkeypatch) -> None:
    import sqlite3

    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    assert [*track.tell(["trackio"], result, tmp_path)] == [f"told trackio: {tmp_path.name}"]
    (file,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as base:
        rows = base.execute("select metrics from metrics").fetchall()
    told = {}
    for (metrics,) in rows:
        told |= json.loads(metrics)
    for key, value in expected(result).items():
        assert told[key] == pytest.approx(value)


def test_a_tracker_that_fails_costs_nothing(result: dict, tmp_path: Path, monkeypatch) -> None:
    def broken(*_, **__):
        raise RuntimeError("no account,\nno network")

    monkeypatch.setitem(__import__("accelerate").tracking.LOGGER_TYPE_TO_CLASS, "wandb", broken)
    (line,) = track.tell(["wandb"], result, tmp_path)
    assert line == "log=wandb: no account, no network; the result stands, the same command tells it again"
    assert not (tmp_path / track.TOLD).exists()


def test_one_that_is_not_installed_is_refused_first(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    assert main(["method=random", "tokens=16", "log=[wandb]", f"output_dir={tmp_path}"]) == 2
    assert capsys.readouterr().err == "vtc: log=wandb: the package is not installed; pip install wandb\n"
    assert main(["method=random", "tokens=16", "log=[mlflow]"]) == 2
    assert "log=mlflow: unknown; allowed: tensorboard, trackio, wandb" in capsys.readouterr().err
