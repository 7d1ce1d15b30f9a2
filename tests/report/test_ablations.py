"""Verdicts on claims against hand-made pairs of samples, and the page that shows them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import verdicts
from scipy.stats import t as student

from vtc import results, shipped, statistics
from vtc.ablations import experiments
from vtc.ablations import page as ablations
from vtc.ablations.claims import AGREES, DISAGREES, MISSING, OPEN, Outcome, judge
from vtc.ablations.experiments import Claim
from vtc.errors import UserError

ROOT = shipped.root()
GROUPS = {"task_a": "understanding", "task_b": "understanding", "task_c": "discriminative"}
BETTER = Claim("A beats B", "1 against 0", "A", "B", ("understanding",))


def outcome(scores: dict[str, list[float]], training: dict | None = None, flops: float = 100.0) -> Outcome:
    """An outcome with these scores of tasks; ids count up."""
    rows = [
        {"task": task, "id": str(i), "score": score, "stratum": None, "tokens_in": 144.0, "tokens_kept": 16.0}
        for task, values in scores.items()
        for i, score in enumerate(values)
    ]
    table = [
        {"task": task, "group": GROUPS[task], "value": float(np.mean(v)), "stderr": 0.01, "n": len(v), "blind": 0.25}
        for task, v in scores.items()
    ]
    means = {g: {"value": 0.5, "stderr": 0.01} for g in {GROUPS[t] for t in scores}}
    result = {
        "run": {"code": "abc", "device": "cpu"}, "config": {"benchmark": {"limit": None}}, "backbone": {},
        "method": {"name": "fastv"}, "checkpoint": None, "scores": table, "means": means,
        "budget": {"visual_tokens_out": 16.0, "compression_ratio": 2.4}, "efficiency": {"prefill_flops": flops},
    }  # fmt: skip
    return Outcome(result, pd.DataFrame(rows), training)


def pair(wins: int, losses: int, ties: int, task: str = "task_a") -> dict[str, dict[int, Outcome]]:
    """A and B on one task: A alone right `wins` times, B alone `losses` times."""
    a = [1.0] * wins + [0.0] * losses + [1.0] * ties
    b = [0.0] * wins + [1.0] * losses + [1.0] * ties
    return {"A": {0: outcome({task: a})}, "B": {0: outcome({task: b})}}


def test_more_wins_than_chance_agree_and_more_losses_disagree() -> None:
    (agree,) = judge([BETTER], pair(20, 2, 78))
    assert agree.verdict == AGREES and agree.n == 100 and agree.difference == pytest.approx(0.18)
    assert agree.p == pytest.approx(statistics.mcnemar([1.0] * 20 + [0.0] * 2, [0.0] * 20 + [1.0] * 2), abs=2e-3)
    (disagree,) = judge([BETTER], pair(2, 20, 78))
    assert disagree.verdict == DISAGREES and disagree.difference == pytest.approx(-0.18)
    (few,) = judge([BETTER], pair(5, 1, 94))
    assert few.verdict == OPEN and few.p == pytest.approx(2 * (1 + 6) / 2**6)
    (ties,) = judge([BETTER], pair(0, 0, 50))
    assert ties.verdict == OPEN and ties.p == 1.0 and (ties.low, ties.high) == (0.0, 0.0)


def test_a_margin_asks_whether_the_loss_is_smaller_than_it() -> None:
    within = replace(BETTER, within=0.05)
    assert judge([within], pair(0, 0, 50))[0].verdict == AGREES  # the same answers
    (close,) = judge([within], pair(10, 12, 978))
    assert close.verdict == AGREES and close.difference < 0 and close.low > -0.05
    (lost,) = judge([within], pair(0, 200, 800))
    assert lost.verdict == DISAGREES and lost.high < -0.05
    (wide,) = judge([within], pair(9, 10, 81))
    assert wide.verdict == OPEN and wide.low < -0.05 < wide.high


def test_every_task_counts_alike_and_samples_are_paired_by_id() -> None:
    a = outcome({"task_a": [1.0] * 4, "task_b": [0.0] * 40, "task_c": [0.0]})
    b = outcome({"task_a": [0.0] * 4, "task_b": [0.0] * 40, "task_c": [1.0]})
    b.samples = b.samples.sample(frac=1.0, random_state=0)  # another order
    (verdict,) = judge([BETTER], {"A": {0: a}, "B": {0: b}})
    assert verdict.difference == pytest.approx(0.5) and verdict.n == 44
    (one,) = judge([replace(BETTER, on=("task_c",))], {"A": {0: a}, "B": {0: b}})
    assert one.difference == -1.0 and one.n == 1
    b.samples.loc[b.samples["task"] == "task_a", "score"] = math.nan  # all of them bad
    assert judge([BETTER], {"A": {0: a}, "B": {0: b}})[0].verdict == MISSING


def test_holm_over_an_experiment_s_claims() -> None:
    runs = pair(20, 2, 78)
    once = judge([BETTER], runs)[0]
    thrice = judge([BETTER] * 3, runs)
    assert [v.p_holm for v in thrice] == pytest.approx([3 * once.p] * 3)
    weak = pair(9, 1, 90)
    assert judge([BETTER], weak)[0].verdict == AGREES and judge([BETTER] * 3, weak)[0].verdict == OPEN


def test_several_seeds_count_their_spread() -> None:
    """The variances over seeds and samples add up, but for what is in both; Satterthwaite's degrees of freedom."""
    rng = np.random.default_rng(0)
    luck = np.array([[0.15], [0.0], [-0.1]])  # of the seeds
    table = (rng.random((3, 400)) < 0.6 + luck).astype(float) - (rng.random((3, 400)) < 0.5)
    weights = np.full(400, 1 / 400)
    found = statistics.paired_estimate(table, weights, ["x"] * 400)
    each = table.mean(1)
    between, within = each.var(ddof=1) / 3, table.mean(0).var(ddof=1) / 400
    left = table - table.mean(0) - table.mean(1)[:, None] + table.mean()  # neither the seed's nor the sample's
    rest = (left**2).sum() / (2 * 399) / (3 * 400)
    assert between > rest
    variance = between + within - rest
    freedom = variance**2 / (between**2 / 2 + within**2 / 399 + rest**2 / (2 * 399))
    half = student(freedom).ppf(0.975) * math.sqrt(variance)
    assert found["difference"] == pytest.approx(each.mean())
    assert found["high"] - found["difference"] == pytest.approx(half)
    assert found["p"] == pytest.approx(2 * student(freedom).sf(each.mean() / math.sqrt(variance)))
    assert statistics.paired_estimate(table[:1], weights, ["x"] * 400)["p"] == statistics.sign_flips(table[0] / 400)
    # Trainings that disagree with each other settle nothing, however many samples there are.
    runs = {"A": {}, "B": {}}
    for seed, (a, b) in enumerate(((1.0, 0.0), (0.0, 1.0), (1.0, 0.0))):
        runs["A"][seed], runs["B"][seed] = outcome({"task_a": [a] * 500}), outcome({"task_a": [b] * 500})
    (verdict,) = judge([BETTER], runs)
    assert verdict.verdict == OPEN and verdict.seeds == 3 and verdict.spread == pytest.approx((1, -1, 1))


def test_what_cannot_be_tested_here_is_said_to_be_so() -> None:
    node = {"text": "k = 5", "paper": "no loss", "untested": "6 layers are few"}
    values = {"name": "x", "source": "a paper", "claim": "", "variants": {"a": {}}, "claims": [node]}
    (claim,) = experiments.parse(values).claims
    (verdict,) = judge([claim], {})
    assert (verdict.verdict, verdict.note, verdict.p_holm) == ("not tested", "6 layers are few", None)
    assert ablations.verdict_line(verdict) == "- **not tested**: k = 5 (paper: no loss): 6 layers are few."


def test_the_verdict_on_a_conclusion_is_a_rule() -> None:
    yes, no, open_ = AGREES, DISAGREES, OPEN
    assert verdicts.verdict([yes, yes]) == yes and verdicts.verdict([no, open_]) == no
    assert verdicts.verdict([yes, open_]) == verdicts.verdict([yes, no]) == "partly"
    assert verdicts.verdict([open_, open_]) == open_
    assert verdicts.shown([yes, MISSING]) == "**agrees**, so far" and verdicts.shown([yes]) == "**agrees**"
    assert verdicts.shown([MISSING, MISSING]) == "**not run**"


def test_floors_costs_and_what_is_missing() -> None:
    runs = pair(20, 2, 78)
    floor = replace(BETTER, worse="blind")
    assert judge([floor], runs)[0].verdict == AGREES
    assert judge([replace(BETTER, worse="bag")], runs)[0].verdict == MISSING
    (absent,) = judge([replace(BETTER, worse="C")], runs)
    assert absent.verdict == MISSING and "C" in absent.note
    stages = {"stages": [{"steps": 10, "seconds": 8.0}, {"steps": 30, "seconds": 32.0}]}
    slow = {"stages": [{"steps": 40, "seconds": 50.0}]}
    runs = {"A": {0: outcome({"task_a": [1.0]}, stages, 99.0)}, "B": {0: outcome({"task_a": [1.0]}, slow, 100.0)}}
    assert runs["A"][0].cost("training_seconds") == 1.0
    cheaper = Claim("A is cheaper", "", "A", "B", ("prefill_flops",), cost=True)
    found = judge([cheaper, replace(cheaper, on=("training_seconds",)), replace(cheaper, on=("training_flops",))], runs)
    assert [v.verdict for v in found] == [AGREES, AGREES, MISSING]
    assert found[1].difference == pytest.approx(0.8) and found[0].p is None
    back = replace(cheaper, better="B", worse="A")
    assert judge([back], runs)[0].verdict == DISAGREES


def write(folder: Path, made: Outcome) -> None:
    folder.mkdir(parents=True)
    results.write(folder, made.result)
    made.samples.to_parquet(folder / results.SAMPLES)
    if made.training:
        (folder / "training.json").write_text(json.dumps(made.training))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Results of two of table 5's three variants, collected from an output folder with this machine's paths."""
    output = tmp_path / "outputs"
    both = outcome({"task_a": [1.0] * 30, "task_c": [1.0] * 30}, {"stages": [{"steps": 2, "seconds": 3.0}]})
    both.result["config"]["checkpoint"] = f"{tmp_path}/outputs/training/x/weights"
    both.result["run"]["command"] = f"python -m vtc experiment=fwd2bot_table5 output_dir={tmp_path}/outputs"
    write(output / "ablations/fwd2bot_table5/both-s0", both)
    write(output / "ablations/fwd2bot_table5/disc-s0", outcome({"task_a": [0.0] * 30, "task_c": [1.0] * 30}))
    ablations.collect(output, tmp_path / ablations.RESULTS)
    return tmp_path


def test_the_page_says_what_there_is_and_what_is_not(root: Path) -> None:
    text = ablations.page(root)
    assert "2 agrees" in text.split("## All claims")[1][:80]
    part = text.split("## fwd2bot_table5")[1].split("\n## ")[0]
    assert "**agrees**: Both losses beat the discriminative one alone" in part and "n = 30, 1 seed" in part
    assert "Not run: ar." in part and "**not run**: Both losses beat the generative one" in part
    assert "624.3" in part and "python -m vtc experiment=fwd2bot_table5" in part and "1.50" in part
    for name in experiments.names():
        assert f"\n## {name}\n" in text
        if name != "fwd2bot_table5":
            assert "\nNot run.\n" in text.split(f"## {name}\n")[1].split("\n## ")[0]
    for name in experiments.names():
        for claim in experiments.load(name).claims:
            assert text.count(claim.text) >= 2  # in the summary and in its section


def test_collected_results_name_no_place_of_a_machine(root: Path) -> None:
    for path in (root / ablations.RESULTS).rglob("*.json"):
        assert str(root) not in path.read_text()
    result = results.load(root / ablations.RESULTS / "fwd2bot_table5/both-s0")
    assert result["config"]["checkpoint"].endswith("training/x/weights")
    kept = ablations.without_paths({"a": ["tokens/s", "/home/me/work/outputs/training/x/weights", 3, "a /b c"]})
    assert kept == {"a": ["tokens/s", "training/x/weights", 3, "a b c"]}


def test_the_committed_page_is_what_the_committed_results_say() -> None:
    assert (ROOT / ablations.PAGE).read_text() == ablations.page(ROOT), "run python -m vtc.ablations.page"


def test_a_claim_about_nothing_is_refused() -> None:
    node = {"name": "x", "source": "y", "claim": "z", "variants": {"A": {}, "B": {}}, "claims": []}
    good = {"text": "A", "better": "A", "worse": "B", "tasks": "understanding"}
    assert experiments.parse(node | {"claims": [good]}).claims[0].better == "A"
    for change, words in (
        ({"worse": "C"}, "variant of 'A'=C"),
        ({"tasks": "understandin"}, "did you mean 'understanding'"),
        ({"more": 1}, "more"),
    ):
        with pytest.raises(UserError, match=words):
            experiments.parse(node | {"claims": [good | change]})
    with pytest.raises(UserError, match="needs within"):
        experiments.parse(node | {"claims": [{"text": "A", "not_worse": "A", "than": "B", "tasks": "understanding"}]})
    with pytest.raises(UserError, match="weights of B=C"):
        experiments.parse(node | {"variants": {"A": {}, "B": {"weights": "C"}}})
