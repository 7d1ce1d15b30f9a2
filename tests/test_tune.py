"""`action=tune`: the cheapest setting that keeps the score, on validation questions; what it refuses."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from vtc import results, tune
from vtc.cli import main
from vtc.configuration import parse
from vtc.tune import Trial, cheapest


def planted(words: tuple[str, ...]) -> tuple[float, float]:
    """Price and retained share of a setting: more tokens keep more, and a deeper layer keeps more and costs more."""
    chosen = dict(word.split("=") for word in words)
    tokens, layer, extra = int(chosen["tokens"]), int(chosen["method.layer"]), int(chosen["seed"])
    price = tokens * (1 + layer)
    return price, 1 - 0.5 * math.exp(-tokens / 20) - 0.1 * (layer == 0) - 0.01 * (extra % 3)


def searched(monkeypatch, trials: int, seed: int) -> list[Trial]:
    """A search over 16 × 4 × 6 settings whose truth is known."""

    def run(job, words, shared, number):
        price, retained = planted(words)
        if "tokens=1" in words:
            return Trial(words, refused="no such budget")
        return Trial(words, Path("result.json"), retained, price)

    monkeypatch.setattr(tune, "_run", run)
    words = ["action=tune", "tokens=1,4,8,12,16,20,24,28,32,36,40,44,48,52,56,60", "method.layer=0,1,2,3"]
    job = parse([*words, "seed=0,1,2,3,4,5", "method=fastv", f"tune.trials={trials}"])
    job = parse([*(o for o in job.overrides if not o.startswith("seed=")), f"seed={seed}"])
    return tune.search(job, tune._space(job), [])


def test_the_search_is_better_than_chance(monkeypatch) -> None:
    """30 of 384 settings, over seeds: Optuna's choice costs less than the best of 30 that are drawn."""
    pytest.importorskip("optuna")
    found, drawn = [], []
    for seed in range(6):
        trials = searched(monkeypatch, 30, seed)
        assert len({trial.words for trial in trials}) == len(trials) == 30, "no setting is scored twice"
        best = cheapest(trials, 0.95)
        found.append(best.price if best else 240)
        rng, prices = random.Random(seed), []
        for _ in range(30):
            words = (
                f"tokens={rng.choice(range(4, 64, 4))}",
                f"method.layer={rng.randrange(4)}",
                f"seed={rng.randrange(6)}",
            )
            price, retained = planted(words)
            prices += [price] if retained >= 0.95 else []
        drawn.append(min(prices, default=240))
    # The truth: layer 0 never keeps 0.95; layer 1 with seed 0 does from 48 tokens on, at a price of 96.
    assert min(found) >= 96 and sum(found) < sum(drawn), (found, drawn)


def test_few_settings_are_all_scored(monkeypatch) -> None:
    pytest.importorskip("optuna")
    trials = searched(monkeypatch, 400, 0)
    assert len(trials) == 384 and sum(bool(trial.refused) for trial in trials) == 24
    best = cheapest(trials, 0.95)
    brute = min((planted(t.words) for t in trials if not t.refused and planted(t.words)[1] >= 0.95), key=lambda v: v[0])
    assert best is not None and best.price == brute[0] == 96
    assert cheapest(trials, 1.0) is None


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "action=tune: nothing to choose from; give some keys several values"),
        (["tokens=4,16", "backbone=llava15_7b", "benchmark=llava"], "benchmark=llava: these are test questions"),
        (["tokens=4,16", "method=fastv,fastvv"], "fastvv"),
        (["tokens=4,16", "tune.retained=1.5"], "tune.retained=1.5: allowed: more than 0, at most 1"),
        (["tokens=4,16", "tune.price=euros"], "tune.price=euros: allowed: flops, tokens, layer_tokens"),
    ],
)
def test_what_it_refuses(words: list[str], line: str, capsys, tmp_path: Path) -> None:
    assert main(["action=tune", *words, f"output_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert line in error and len(error.strip().splitlines()) == 1


def test_on_pocket_it_looks_at_validation_questions(tmp_path: Path, capsys) -> None:
    """Three settings, one of which there are no weights for, scored for real; the same command reads them."""
    pytest.importorskip("optuna")
    words = ["action=tune", "method=avgpool,fwd2bot", "tokens=9,4", "tune.retained=0.01", "benchmark.limit=4"]
    words += ["benchmark.tasks=[pocket2_existence]", f"output_dir={tmp_path}"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "cheapest that keeps 1%: method=avgpool tokens=4" in out
    assert "left out: method=fwd2bot tokens=9: it needs training" in out
    (file,) = (tmp_path / "tune").glob("*.json")
    told = json.loads(file.read_text())
    assert told["best"]["words"] == ["method=avgpool", "tokens=4"] and len(told["trials"]) == 4
    run = results.load(told["best"]["result"])
    assert run["run"]["id"] and "pocket-validation" in run["config"]["benchmark"]["data"]
    assert run["budget"]["flops_ratio"] == told["best"]["price"]
    score = run["scores"][0]
    assert told["best"]["retained"] == pytest.approx(score["value"] / score["baseline"])
    # On none of the test split's pictures.
    from vtc.pocket import second

    of_test = {row["image"]["bytes"] for row in second.rows("pocket2_existence")}
    seen = {row["image"]["bytes"] for row in second.rows("pocket2_existence", "validation")}
    assert not of_test & seen
    line = next(line for line in out.splitlines() if line.startswith("on the test questions: python -m vtc "))
    assert "benchmark.data" not in line and line.endswith("method=avgpool tokens=4")
    assert main(words) == 0
    assert capsys.readouterr().out.count("already scored") == 3
