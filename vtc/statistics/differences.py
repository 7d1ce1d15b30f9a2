"""Differences of paired scores: what each group of samples adds, resampled; the smallest one that can be shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

LEVEL = 0.05  # a difference is told from none below this p-value
POWER = 0.8  # how often the smallest difference that is stated would be found
DRAWS = 2_000
TOLD, OPEN = "differ", "can't tell apart"


def verdict(p: float | None) -> str:
    """What a (corrected) p-value says of two runs: that they differ, or that these samples can't tell them apart, which
    is not that they are equal; empty where there is none."""
    return "" if p is None else TOLD if p < LEVEL else OPEN


def contributions(
    table: np.ndarray, weights: np.ndarray, cells: Sequence[str], groups: Sequence[Any] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """What each group of samples adds to the mean difference, and the number of its cell.

    Args:
        table, weights, cells, groups: as `vtc.statistics.paired_estimate` has them. A group lies in one cell.

    Returns:
        `[seeds, groups]`, whose sum over the groups is the mean difference, and `[groups]`.
    """
    _, cell_of = np.unique(np.asarray(cells, dtype=str), return_inverse=True)
    shares = table * weights
    if groups is None:
        return shares, cell_of
    names = [f"{cell}\n{group}" for cell, group in zip(cell_of, groups, strict=True)]
    _, first, group_of = np.unique(names, return_index=True, return_inverse=True)
    group_of, first = np.argsort(np.argsort(first))[group_of], np.sort(first)  # in the order in which they come
    sums = [np.bincount(group_of, weights=row, minlength=len(first)) for row in shares]
    return np.stack(sums), cell_of[first]


@lru_cache(maxsize=4)
def _resampled(cells: bytes, draws: int, seed: int) -> np.ndarray:
    """How often each group is drawn, `[draws, groups]`: as many of each cell as it has."""
    cell_of = np.frombuffer(cells, dtype=np.int64)
    rng, counts = np.random.default_rng(seed), np.zeros((draws, len(cell_of)), dtype=np.float32)
    for cell in np.unique(cell_of):
        members = np.flatnonzero(cell_of == cell)
        n = len(members)
        drawn = rng.integers(0, n, (draws, n)) + n * np.arange(draws)[:, None]
        counts[:, members] = np.bincount(drawn.ravel(), minlength=draws * n).reshape(draws, n)
    return counts


def bootstrap(
    shares: np.ndarray, cell_of: np.ndarray, differences: Any = None, draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """95 % intervals of mean differences by a paired bootstrap over the groups of samples (Efron and Tibshirani, 1993,
    section 13.3: percentiles), each cell resampled within itself. All differences are resampled together.

    Percentiles of n resampled values are too narrow by sqrt(1 - 1/n) a cell; that is put right.

    Args:
        shares: what each group adds, `[groups]` or `[groups, differences]`, as `contributions`.
        cell_of: number of its cell, `[groups]`.
        differences: the mean differences; None: the sums of `shares`.

    Returns:
        lower and upper ends, `[differences, 2]`.
    """
    values = shares.reshape(len(shares), -1)
    centre = values.sum(axis=0) if differences is None else np.broadcast_to(differences, values.shape[1:])
    return ends(resampled(values, cell_of, draws, seed), centre)


def resampled(shares: np.ndarray, cell_of: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Means as `bootstrap` draws them, `[draws, means]`: those of a difference are the differences of those of its two
    parts, so that methods which are compared pair by pair are resampled once.

    Args:
        shares: what each group adds to each mean, `[groups, means]`; cell_of: number of its cell, `[groups]`.
    """
    values = shares.astype(float)
    for cell in np.unique(cell_of):
        members = cell_of == cell
        n = members.sum()
        mean = values[members].mean(axis=0)
        values[members] = mean + (values[members] - mean) * math.sqrt(n / max(n - 1, 1))
    return _resampled(np.ascontiguousarray(cell_of, dtype=np.int64).tobytes(), draws, seed) @ values


def ends(drawn: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """95 % intervals `[means, 2]` of resampled means `[draws, means]`; they hold what they are of, `centre`."""
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return np.stack([np.minimum(low, centre), np.maximum(high, centre)], axis=1)


def standard_errors(shares: np.ndarray, cell_of: np.ndarray) -> np.ndarray:
    """Standard errors of mean differences over the groups of samples.

    Args:
        shares, cell_of: as `bootstrap`.

    Returns:
        `[differences]`.
    """
    values = shares.reshape(len(shares), -1)
    n = np.bincount(cell_of).astype(float)
    variance = []
    for column in values.T:
        apart = column - (np.bincount(cell_of, weights=column) / np.maximum(n, 1))[cell_of]
        variance.append((np.bincount(cell_of, weights=apart * apart) * n / np.maximum(n - 1, 1)).sum())
    return np.sqrt(np.array(variance))


def smallest_difference(error: Any, degrees: float = math.inf) -> Any:
    """The smallest true difference that a test at 5 % finds in 80 % of such samples.

    Args:
        error: standard error of the difference; degrees: of freedom that it is known with.
    """
    return _quantiles(round(min(degrees, 1e4), 3)) * error


@lru_cache(maxsize=1 << 12)
def _quantiles(degrees: float) -> float:
    """By how many standard errors a difference must be off for a t-test to find it with `POWER`."""
    from scipy.special import stdtrit

    critical = stdtrit(degrees, 1 - LEVEL / 2)
    if degrees > 100:
        return float(critical + stdtrit(degrees, POWER))
    from scipy.optimize import brentq
    from scipy.stats import nct  # which takes longest to import

    return float(brentq(lambda off: nct.sf(critical, degrees, off) - POWER, 0, 100 + 5 * critical))
