"""VTC-Bench's split: which samples are hard, and what a method scores on them, against a count one by one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fabricated import TASKS, make

from vtc import results
from vtc.cli import main
from vtc.report.collection import collect
from vtc.report.split import splits

N = 200


def scores_of(seed: int) -> dict[str, np.ndarray]:
    """Of tasks of full score 1, and of one whose scores are shares: half of the full score is right."""
    rng = np.random.default_rng(seed)
    return {
        "pocket_existence": rng.integers(0, 2, N).astype(float),
        "pocket_counting": rng.integers(0, 2, N).astype(float),
        "pocket_retrieval": rng.choice([0.0, 0.25, 0.5, 1.0], N),
    }


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Uncompressed, downsampling and two methods at 16 tokens, and a method at a budget without downsampling."""
    scored = {}
    for at, (method, tokens) in enumerate(
        [("none", None), ("downsample", 16), ("fastv", 16), ("victor", 16), ("fastv", 4)]
    ):
        scored[f"{method}-{tokens}"] = samples = scores_of(at)
        make(tmp_path, method, tokens, 0.5, samples=samples)
    return scored


def test_hard_samples_are_those_that_only_the_whole_picture_answers(runs, tmp_path: Path) -> None:
    (setting,), _ = collect([tmp_path])
    parts = {part.run.method: part for part in splits(setting)}
    assert set(parts) == {"fastv", "victor"} and all(part.run.tokens == 16 for part in parts.values())
    for method, part in parts.items():
        hard, easy = [], []
        for task in TASKS:
            for i in range(N):
                whole, small, mine = (runs[name][task][i] for name in ("none-None", "downsample-16", f"{method}-16"))
                if whole >= 0.5:
                    (easy if small >= 0.5 else hard).append(mine)
        assert (part.n_hard, part.n_easy) == (len(hard), len(easy)) and hard and easy
        assert part.hard.value == pytest.approx(np.mean(hard)) and part.easy.value == pytest.approx(np.mean(easy))
        assert part.hard.stderr == pytest.approx(np.std(hard, ddof=1) / len(hard) ** 0.5)
    ranked = [part.hard.value for part in splits(setting)]
    assert ranked == sorted(ranked, reverse=True)


def test_a_full_score_is_that_of_the_task(runs, tmp_path: Path) -> None:
    """Of points out of 2,000, 1,000 are right."""
    for folder in tmp_path.iterdir():
        result = json.loads((folder / results.RESULT).read_text())
        row = next(r for r in result["scores"] if r["task"] == "pocket_counting")
        row |= {"scale": 2000.0, "value": 2000 * row["value"], "baseline": 1800.0}
        row["retained"] = row["value"] / 1800.0
        (folder / results.RESULT).write_text(json.dumps(result))
        frame = results.samples(folder)
        frame.loc[frame["task"] == "pocket_counting", "score"] *= 2000
        results.write_samples(folder, frame[["task", "id", "score"]].to_dict("records"))
    (setting,), notes = collect([tmp_path])
    assert not notes
    parts = {part.run.method: part for part in splits(setting)}
    expected = sum(
        int(runs["none-None"][task][i] >= 0.5 > runs["downsample-16"][task][i]) for task in TASKS for i in range(N)
    )
    assert parts["fastv"].n_hard == expected and 0 <= parts["fastv"].hard.value <= 1


def test_the_report_has_the_split_in_its_table(runs, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"report.inputs=[{tmp_path}]", "report.figures=[]", f"report.output={tmp_path / 'out'}"]
    assert main(["action=report", *words]) == 0
    text = (tmp_path / "out/table.md").read_text()
    assert "### Samples that take compression to answer" in text and "arXiv 2510.07143" in text


def test_there_is_no_split_without_downsampling_or_the_whole_picture(tmp_path: Path) -> None:
    make(tmp_path / "a", "none", None, 0.5, samples=scores_of(0))
    make(tmp_path / "a", "fastv", 16, 0.5, samples=scores_of(1))
    make(tmp_path / "b", "downsample", 16, 0.5, samples=scores_of(2))
    make(tmp_path / "b", "fastv", 16, 0.5, samples=scores_of(3))
    for folder in ("a", "b"):
        (setting,), _ = collect([tmp_path / folder])
        assert splits(setting) == []
