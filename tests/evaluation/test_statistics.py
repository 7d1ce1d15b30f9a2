"""Error bars and paired tests against scipy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from vtc import statistics


def test_binomial_error():
    x = [1] * 30 + [0] * 70
    assert statistics.stderr(x) == pytest.approx(np.sqrt(0.3 * 0.7 / 100))
    assert statistics.stderr([1.0]) is None and statistics.mean([]) is None


def test_bootstrap_error_is_that_of_the_mean_and_repeatable():
    x = np.random.default_rng(1).gamma(2.0, size=300)
    assert statistics.stderr(x) == pytest.approx(stats.sem(x), rel=0.08)
    assert statistics.stderr(x) == statistics.stderr(x)


def test_strata_count_alike():
    scores, strata = [1, 1, 1, 1, 0, 1], ["a"] * 4 + ["b"] * 2
    assert statistics.mean(scores, strata) == pytest.approx((1.0 + 0.5) / 2)
    assert statistics.weights(strata).sum() == pytest.approx(1.0)
    assert statistics.stderr(scores, strata) == pytest.approx(np.sqrt(0 + 0.25 / 2) / 2)
    assert statistics.stderr(scores[:-1] + [0.5], strata[:-1] + ["third"]) is None, "of one sample nothing is known"


def test_samples_that_belong_together_are_one_each():
    """Clusters of four alike tell as much as their number, and flip as one."""
    rng = np.random.default_rng(2)
    ones, names = rng.random(12).round(), np.arange(12)
    scores, clusters = np.repeat(ones, 4), np.repeat(names, 4).astype(str).tolist()
    assert statistics.stderr(scores, clusters=clusters) == pytest.approx(stats.sem(ones))
    own = [str(i) for i in range(len(scores))]
    assert statistics.stderr(scores, clusters=own) == pytest.approx(stats.sem(scores))
    assert statistics.stderr([1.0, 0.0], clusters=["a", "a"]) is None, "of one cluster nothing is known"
    other = rng.random(48).round()
    differences = (scores - other).reshape(12, 4).sum(1)
    expected = stats.permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert statistics.paired(scores, other, clusters=clusters) == pytest.approx(expected.pvalue)
    assert statistics.paired(scores, other, clusters=own) == pytest.approx(statistics.mcnemar(scores, other))


def test_clusters_are_flipped_as_one_in_means_over_tasks():
    rng = np.random.default_rng(5)
    frames = []
    for _ in range(2):
        look_alikes = {"task": "r", "id": [f"r{i}" for i in range(24)], "cluster": np.repeat(range(6), 4).astype(str)}
        alone = {"task": "q", "id": [f"q{i}" for i in range(5)], "cluster": ""}
        frames.append(pd.concat([pd.DataFrame(part) for part in (look_alikes, alone)], ignore_index=True))
        frames[-1]["score"] = rng.random(29).round()
    rows = [{"task": name, "group": "understanding"} for name in "rq"]
    found = statistics.compare_samples(*frames, rows)
    d = (frames[0]["score"] - frames[1]["score"]).to_numpy()
    sums = [d[:24].reshape(6, 4).sum(1) / 24, d[24:] / 5]
    for name, values in (("r", sums[0]), ("q", sums[1]), ("understanding", np.concatenate(sums) / 2)):
        expected = stats.permutation_test((values,), np.sum, permutation_type="samples", n_resamples=np.inf)
        assert found[name]["p_value"] == pytest.approx(expected.pvalue), name
    unstated = [frame.drop(columns="cluster") if i else frame for i, frame in enumerate(frames)]
    without = statistics.compare_samples(*unstated, rows)["r"]
    assert without["p_value"] == pytest.approx(statistics.mcnemar(frames[0]["score"][:24], frames[1]["score"][:24]))


@pytest.mark.parametrize("wins, losses, ties", [(9, 2, 30), (5, 5, 3), (0, 8, 0), (40, 18, 100)])
def test_mcnemar_is_exact(wins, losses, ties):
    a = [1] * wins + [0] * losses + [1] * ties
    b = [0] * wins + [1] * losses + [1] * ties
    tail = stats.binom.cdf(min(wins, losses), wins + losses, 0.5)
    assert statistics.mcnemar(a, b) == pytest.approx(min(1.0, 2 * tail))
    assert statistics.paired(a, b) == statistics.mcnemar(a, b)


def test_no_difference_is_no_evidence():
    assert statistics.mcnemar([1, 0, 1], [1, 0, 1]) == 1.0
    assert statistics.sign_flips([0.0, 0.0]) == 1.0
    assert statistics.paired([], []) is None


@pytest.mark.parametrize("n", [5, 11])
def test_few_sign_flips_are_all_tried(n):
    d = np.random.default_rng(n).normal(0.4, 1.0, n)
    expected = stats.permutation_test((d,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert statistics.sign_flips(d) == pytest.approx(expected.pvalue)


def test_many_sign_flips_agree_with_scipy_and_the_t_test():
    d = np.random.default_rng(3).normal(0.08, 1.0, 400)
    expected = stats.permutation_test(
        (d,), lambda x, axis: np.sum(x, axis=axis), vectorized=True, permutation_type="samples", n_resamples=9999
    )
    assert statistics.sign_flips(d) == pytest.approx(expected.pvalue, abs=0.02)
    assert statistics.sign_flips(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.02)
    assert statistics.sign_flips(d) == statistics.sign_flips(d)


def test_other_scores_use_sign_flips_of_weighted_differences():
    rng = np.random.default_rng(0)
    a, b = rng.random(50), rng.random(50)
    assert statistics.paired(a, b) == pytest.approx(statistics.sign_flips((a - b) / 50))
    with pytest.raises(ValueError, match="same samples"):
        statistics.paired([1.0], [1.0, 0.0])


@pytest.mark.parametrize("n", [14, 17, 20])
@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("kind", ["real", "one task", "three sizes", "one that dominates"])
def test_many_sign_flips_are_those_of_every_way(n, shift, kind):
    """Against the sums of all 2^n ways, from the middle of the distribution to its last one."""
    rng = np.random.default_rng(n)
    d = rng.normal(shift, 1.0, n)
    if kind != "real":
        d = np.sign(d) * (np.abs(d) if kind == "one that dominates" else 1 / 2700)
    if kind == "three sizes":
        d[: n // 2] *= 1.5
        d[::3] *= 0.5
    if kind == "one that dominates":
        d[0] = 30.0
    sums = np.zeros(1)
    for x in d:
        sums = np.concatenate([sums + x, sums - x])
    exact = (np.abs(sums) >= abs(d.sum()) * (1 - 1e-12)).mean()
    assert statistics.sign_flips(d) == pytest.approx(exact, rel=2e-3)
    assert kind in ("real", "one that dominates") or statistics.sign_flips(d) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(("n", "losses"), [(200, 60), (2_000, 800), (30_000, 14_200)])
def test_a_p_value_is_as_small_as_it_is(n, losses):
    """Differences of one size are a binomial; p is far below what some thousand resamples could show."""
    d = np.array([-1.0] * losses + [1.0] * (n - losses)) / 7
    exact = stats.binomtest(losses, n, 0.5).pvalue
    assert exact < 1e-7 and statistics.sign_flips(d) == pytest.approx(exact, rel=1e-6 if n < 10_000 else 0.1)
    assert statistics.sign_flips(np.ones(3_000)) > 0


@pytest.mark.parametrize("shift", [0.0, 0.03, 0.06])
def test_real_differences_in_number_agree_with_the_saddlepoint(shift):
    """Robinson (1982): Lugannani and Rice's formula for the law of sum ±d, whose cumulants are those of log cosh."""
    d = np.random.default_rng(5).normal(shift, 1.0, 5_000)
    observed = abs(d.sum())
    u = optimize.brentq(lambda u: (d * np.tanh(u * d)).sum() - observed, 0.0, 5.0)
    w = np.sqrt(2 * (u * observed - np.log(np.cosh(u * d)).sum()))
    v = u * np.sqrt(np.square(d / np.cosh(u * d)).sum())
    tail = stats.norm.sf(w) + stats.norm.pdf(w) * (1 / v - 1 / w)
    assert statistics.sign_flips(d) == pytest.approx(2 * tail, rel=0.05)


def test_samples_are_paired_where_the_question_is_the_same():
    pd = pytest.importorskip("pandas")
    a = pd.DataFrame({"task": "t", "id": ["0", "1", "2"], "target": ["cat", "dog", "cow"], "score": [1.0, 0.0, 1.0]})
    b = a.assign(target=["cat", "fox", "cow"], score=[0.0, 1.0, np.nan])
    assert statistics.compare_samples(a, b)["t"]["n"] == 1, "another target, or no score: no pair"
    assert statistics.compare_samples(a, b.drop(columns="target"))["t"]["n"] == 2, "where a target isn't known, by id"


def test_families_are_corrected_each_by_its_own_number():
    assert statistics.holm([0.01, 0.02, 0.04, None], [4, 4, 16, 16]) == pytest.approx([0.02, 0.02, 0.04, None])


@pytest.mark.parametrize("count", [20, 300, 900])
def test_the_characteristic_function_and_the_shift_algorithm_count_the_same(count: int, monkeypatch) -> None:
    from vtc.statistics import scores

    rng = np.random.default_rng(count)
    differences = np.where(
        rng.random(count) < 0.8, rng.choice([-1.0, 1.0], count, p=[0.46, 0.54]), rng.normal(size=count)
    )
    fast = statistics.sign_flips(differences)
    monkeypatch.setattr(scores, "PRECISE", 9.0)  # never by cosines
    assert fast == pytest.approx(statistics.sign_flips(differences), rel=1e-7)


def test_a_p_value_that_is_surely_small_is_bounded() -> None:
    differences = np.ones(100)
    exact, bound = statistics.sign_flips(differences), statistics.sign_flips(differences, least=1e-12)
    assert exact == pytest.approx(2.0**-99) and bound == pytest.approx(2 * np.exp(-50)) and exact < bound < 1e-12
    assert statistics.sign_flips(np.ones(30), least=1e-12) == pytest.approx(2.0**-29), "not surely small: counted"
