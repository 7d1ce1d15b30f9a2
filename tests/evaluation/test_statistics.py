"""Error bars and paired tests against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

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
