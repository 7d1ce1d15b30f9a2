"""Tests, intervals and stated sizes hold what they claim, in simulations whose truth is known."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from scipy.stats import nct, t

from vtc import shipped, statistics
from vtc.statistics import differences
from vtc.statistics.levels import Levels

FILE = shipped.root() / "benchmarks/statistics/calibration.py"
SPEC = importlib.util.spec_from_file_location("calibration", FILE)
calibration = importlib.util.module_from_spec(SPEC)
__import__("sys").modules["calibration"] = calibration  # dataclasses look their module up
SPEC.loader.exec_module(calibration)
COMMITTED = json.loads(FILE.with_suffix(".json").read_text(encoding="utf-8"))["designs"]


def test_the_committed_simulations_hold_what_is_claimed():
    assert set(COMMITTED) == {*calibration.DESIGNS, *calibration.UNTOLD}
    for name, design in calibration.DESIGNS.items():
        row = COMMITTED[name]
        covered = [row["coverage"], row["coverage_of_a_difference"]]
        if design.seeds > 1 and design.between == 0:  # luck that isn't there is found now and then: a wider interval
            assert row["false_positives"] <= 0.065 and all(0.93 <= share <= 0.98 for share in covered), name
            assert 0.75 <= row["power"] <= 0.9, name
            continue
        assert abs(row["false_positives"] - 0.05) <= 0.015, name
        assert all(abs(share - 0.95) <= 0.02 for share in covered), name
        assert abs(row["power"] - 0.8) <= 0.05, name
    (untold,) = calibration.UNTOLD
    assert COMMITTED[untold]["false_positives"] > 0.1, "look-alikes that are taken for independent"


@pytest.mark.parametrize("name", ["one seed, 400 samples", "three seeds, some luck"])
def test_a_smaller_simulation_agrees_with_the_committed_one(name):
    """240 simulations; ± is about three standard errors."""
    row, committed = calibration.calibrate(calibration.DESIGNS[name], 240, seed=7), COMMITTED[name]
    assert row["false_positives"] == pytest.approx(committed["false_positives"], abs=0.045)
    assert row["coverage"] == pytest.approx(committed["coverage"], abs=0.045)
    assert row["coverage_of_a_difference"] == pytest.approx(committed["coverage_of_a_difference"], abs=0.045)
    assert row["power"] == pytest.approx(committed["power"], abs=0.1)


def test_two_levels_are_those_of_a_two_way_table():
    """Against the expected mean squares, computed cell by cell."""
    rng = np.random.default_rng(3)
    seeds, samples = 4, 30
    table = rng.normal(size=(1, samples)) + 0.5 * rng.normal(size=(seeds, 1)) + 0.3 * rng.normal(size=(seeds, samples))
    estimate = statistics.paired_estimate(table, np.full(samples, 1 / samples), ["a"] * samples)
    rows, columns, mean = table.mean(1), table.mean(0), table.mean()
    of_seeds = samples * sum((r - mean) ** 2 for r in rows) / (seeds - 1)
    of_samples = seeds * sum((c - mean) ** 2 for c in columns) / (samples - 1)
    left = [(table[s, i] - rows[s] - columns[i] + mean) ** 2 for s in range(seeds) for i in range(samples)]
    of_rest = sum(left) / ((seeds - 1) * (samples - 1))
    variance = (of_seeds + of_samples - of_rest) / (seeds * samples)
    degrees = (of_seeds + of_samples - of_rest) ** 2 / (
        of_seeds**2 / (seeds - 1) + of_samples**2 / (samples - 1) + of_rest**2 / ((seeds - 1) * (samples - 1))
    )
    half = t.ppf(0.975, degrees) * variance**0.5
    assert estimate["high"] - estimate["difference"] == pytest.approx(half)
    assert estimate["p"] == pytest.approx(2 * t.sf(abs(mean) / variance**0.5, degrees))


def test_the_smallest_difference_of_one_seed_is_that_of_a_t_test():
    for degrees in (3.0, 40.0):
        off = statistics.smallest_difference(1.0, degrees)
        assert nct.sf(t.ppf(0.975, degrees), degrees, off) == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize("luck", [0.0, 0.3, 3.0])
def test_the_smallest_difference_of_several_seeds_is_found_as_often_as_it_says(luck):
    """Drawn: trainings whose variance between is known, tested with what they show of it."""
    rng, seeds, draws = np.random.default_rng(2), 3, 40_000
    levels = Levels(samples=1.0, rest=0.3, freedom=399, seeds=seeds)
    shown = (0.3 + luck) * rng.chisquare(seeds - 1, draws) / (seeds - 1)
    smallest = levels.smallest(float(np.median(shown)))
    variance = 1.0 + np.maximum(shown - 0.3, 0)
    degrees = variance**2 / (shown**2 / 2 + 1 / 399 + 0.09 / (399 * 2))
    critical = np.where(shown > 0.3, t.ppf(0.975, degrees), t.ppf(0.975, 399))
    differences = smallest + (1 + luck) ** 0.5 * rng.normal(size=draws)
    assert np.mean(np.abs(differences) > critical * variance**0.5) == pytest.approx(0.8, abs=0.012)


def test_groups_are_resampled_and_flipped_as_one():
    """Four copies of each sample say no more than one of it."""
    rng = np.random.default_rng(5)
    one = rng.choice([-1.0, 0.0, 1.0], size=(1, 40), p=[0.1, 0.6, 0.3])
    four = np.repeat(one, 4, axis=1)
    alone = statistics.paired_estimate(one, np.full(40, 1 / 40), ["a"] * 40)
    together = statistics.paired_estimate(four, np.full(160, 1 / 160), ["a"] * 160, groups=np.repeat(range(40), 4))
    assert together == pytest.approx(alone, abs=1e-6)
    apart = statistics.paired_estimate(four, np.full(160, 1 / 160), ["a"] * 160)
    assert apart["p"] < alone["p"] and apart["smallest"] < 0.6 * alone["smallest"]


def test_a_bootstrap_is_one_of_drawn_samples():
    """Against samples drawn one by one, cell by cell."""
    rng = np.random.default_rng(1)
    cells = np.array([0] * 60 + [1] * 20)
    shares = rng.normal(0.01, 0.05, size=80)
    drawn = np.zeros(20_000)
    for cell in (0, 1):
        mine = shares[cells == cell]
        drawn += mine[rng.integers(0, len(mine), (20_000, len(mine)))].sum(axis=1)
    low, high = differences.bootstrap(shares, cells)[0]
    width = np.diff(np.quantile(drawn, [0.025, 0.975]))[0]
    assert high - low == pytest.approx(width, rel=0.06)
    assert (low + high) / 2 == pytest.approx(shares.sum(), abs=0.1 * width)


def test_a_verdict_is_one_of_two():
    assert [statistics.verdict(p) for p in (0.0499, 0.05, None)] == ["differ", "can't tell apart", ""]


def test_agreement_is_of_the_words_right_or_wrong():
    import pandas as pd

    a = pd.DataFrame(
        {
            "task": ["t"] * 4,
            "id": list("abcd"),
            "prediction": ["Red ", "no", "two", ""],
            "error": [None, None, None, "x"],
        }
    )
    b = pd.DataFrame(
        {"task": ["t"] * 4, "id": list("dcba"), "prediction": ["x", "TWO", "yes", "red"], "error": [None] * 4}
    )
    assert statistics.agreement(a, b) == {"t": pytest.approx(2 / 3)}
