"""Error bars and paired tests for task scores.

A task's score is the mean over its strata of the mean over each stratum's samples; nearly every task has one stratum
and so an ordinary mean. Hard captions have three: replace, swap and add count alike however many there are of each.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from vtc.statistics.differences import contributions, standard_errors

Scores = Any  # [n] numbers: a sequence or an array

ENUMERATED = 1 << 13  # ways to flip signs
ADDITIONS = 1 << 22  # of shares to shares, some hundredths of a second
PRECISE = 1e-7  # p-values above are those of a sum of cosines, which is exact to about 1e-13
SEED = 0


def weights(strata: Sequence[str]) -> np.ndarray:
    """What each sample adds to the score, `[n]`, summing to 1: 1 / (strata × samples of its stratum)."""
    names, index, counts = np.unique(np.asarray(strata, dtype=str), return_inverse=True, return_counts=True)
    return 1.0 / (len(names) * counts[index])


def mean(scores: Scores, strata: Sequence[str] | None = None) -> float | None:
    """The score; None where there is no sample. Sums are exact, so that every processor has the same last digit."""
    if len(scores) == 0:
        return None
    groups: dict[str, list[float]] = {}
    for score, stratum in zip(scores, strata or [""] * len(scores), strict=True):
        groups.setdefault(stratum, []).append(float(score))
    return math.fsum(math.fsum(group) / len(group) for group in groups.values()) / len(groups)


def is_binary(scores: Scores) -> bool:
    return bool(np.isin(np.asarray(scores, dtype=float), (0.0, 1.0)).all())


def stderr(
    scores: Scores, strata: Sequence[str] | None = None, seed: int = SEED, clusters: Sequence[str] | None = None
) -> float | None:
    """Standard error of `mean`: binomial, sqrt(p(1-p)/n), for 0/1 scores, else bootstrap over the samples, each
    stratum resampled within itself. None where there is no sample, or a stratum has a single one.

    Args:
        clusters: which samples belong together, as look-alikes do, by any name: of clusters' sums it is
            sqrt(n/(n-1) Σ (sum - mean)²) within each stratum (Miller, arXiv 2411.00640, section 2.2). None: each
            sample is its own.
    """
    if len(scores) < 2:
        return None
    x = np.asarray(scores, dtype=float)
    strata = strata or [""] * len(x)
    if clusters is not None:
        shares, cell_of = contributions(x[None], weights(strata), strata, clusters)
        return float(standard_errors(shares.T, cell_of)[0]) if np.bincount(cell_of).min() > 1 else None
    _, index = np.unique(np.asarray(strata, dtype=str), return_inverse=True)
    groups = [x[index == g] for g in range(index.max() + 1)]
    if min(map(len, groups)) < 2:
        return None
    if is_binary(x):
        return float(np.sqrt(sum(g.mean() * (1 - g.mean()) / len(g) for g in groups)) / len(groups))
    rng = np.random.default_rng(seed)
    means = np.zeros(2_000)
    for g in groups:
        means += g[rng.integers(0, len(g), (len(means), len(g)))].mean(axis=1) / len(groups)
    return float(means.std(ddof=1))


def mcnemar(a: Scores, b: Scores) -> float:
    """Exact two-sided McNemar test of paired 0/1 scores: of the samples on which `a` and `b` differ, as many should
    favour either. 1 where they never differ."""
    from scipy.stats import binomtest

    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    return float(binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def sign_flips(differences: Scores, least: float = 0.0) -> float:
    """Two-sided paired permutation test that (weighted) differences are symmetric about 0: the share of all 2^n ways to
    flip their signs whose sum is as far from 0. 1 where there is no difference.

    Nothing is drawn, so that p can be as small as it is. Up to `ENUMERATED` ways are tried one by one. Of more it is
    counted how many lead to each sum, in steps of the unit that all differences are whole multiples of: by the
    characteristic function of the sum, and where p is below `PRECISE` by the shift algorithm (Pagano and Tritchler,
    JASA 78, 1983, who give both; Streitberg and Röhmel, 1986). Where they have no unit, as real-valued scores, they are
    rounded to steps of which `ADDITIONS` allows many a difference. Beyond ten thousand differences or so the sum is
    taken as normal (the error is of the order of 1/n).

    Args:
        least: a p-value that is surely smaller isn't counted: it is Hoeffding's bound (1963), which it doesn't exceed.
    """
    d = np.asarray(differences, dtype=float)
    d = d[d != 0]
    n, sizes = len(d), np.abs(d)
    if n == 0:
        return 1.0
    if 2 ** min(n, 62) <= ENUMERATED:
        return float((np.abs(_signs(n) @ d) >= abs(d.sum()) * (1 - 1e-12)).mean())
    bound = 2 * math.exp(-(d.sum() ** 2) / (2 * float(np.square(d).sum())))
    if bound < least:
        return max(bound, sys.float_info.min)
    finest = sizes.sum() / max(ADDITIONS // n, 16 * n)
    step = max(_unit(sizes, finest), finest)
    # Rounded so that the sum is off by half a step at most: each end of the running sum goes to the nearest step.
    ends = np.rint(np.cumsum(d) / step).astype(int)
    steps = np.abs(np.diff(ends, prepend=0))
    if n * int(steps.sum()) > 512 * ADDITIONS:
        return math.erfc(abs(d.sum()) / math.sqrt(2 * np.square(d).sum()))
    # Where all are positive, flipping one of s steps takes 2 s from their sum: at most `most` may be flipped in total.
    most = (int(steps.sum()) - abs(int(ends[-1]))) // 2
    if bound > PRECISE and (p := _by_cosines(steps, most)) is not None and p > PRECISE:
        return p
    share, reach = np.zeros(most + 1), 0
    share[0] = 1.0
    for size in np.sort(steps):
        share *= 0.5
        reach = min(most, reach + size)
        if size <= most:
            share[size : reach + 1] += share[: reach + 1 - size]
    return float(np.clip(2 * share.sum(), sys.float_info.min, 1.0))


@cache
def _signs(n: int) -> np.ndarray:
    """All ways to sign n numbers, `[2^n, n]`."""
    return 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)


def _by_cosines(steps: np.ndarray, most: int) -> float | None:
    """Share of the ways to choose among `steps` whose sum is `most` at the most, twice, by the characteristic function
    of that sum: of N = 2 m + 1 sums that it can have, it is 1/N Σ over k from -m to m of Π cos(πks/N) times the
    Dirichlet kernel of the sums that count. None where that takes longer than the shift algorithm."""
    sizes, counts = np.unique(steps[steps > 0], return_counts=True)
    total = int(steps.sum())
    half = total // 2 + 1
    count = 2 * half + 1
    if 4 * len(sizes) > len(steps):
        return None
    turn = np.cos(np.pi * np.arange(2 * count) / count)
    size, negative = np.log(np.maximum(np.abs(turn), 1e-300)), turn < 0
    k = np.arange(1, half + 1, dtype=np.int64)
    logs, odd = np.zeros(half), np.zeros(half, dtype=bool)
    for step, times in zip(sizes.tolist(), counts.tolist(), strict=True):
        at = k * step % (2 * count)
        logs += times * size[at]
        if times % 2:
            odd ^= negative[at]
    terms = np.exp(logs) * np.where(odd, -1.0, 1.0)
    kernel = (
        np.sin(np.pi * k * (most + 1) / count) / np.sin(np.pi * k / count) * np.cos(np.pi * k * (total - most) / count)
    )
    return min(1.0, 2 * (most + 1 + 2 * float(terms @ kernel)) / count)


def _unit(sizes: np.ndarray, finest: float) -> float:
    """The largest number that all are whole multiples of, as far as floats tell; 0 where it is below `finest`."""
    unit, blur = 0.0, 1e-9 * float(sizes.max())
    for size in np.unique(sizes):
        unit, rest = float(size), unit
        while rest > blur:
            unit, rest = rest, abs(unit - round(unit / rest) * rest)
        if unit < finest:
            return 0.0
    return unit


def paired(
    a: Scores, b: Scores, strata: Sequence[str] | None = None, clusters: Sequence[str] | None = None
) -> float | None:
    """p-value that `a` and `b`, scores of the same samples, differ: exact McNemar for 0/1, else sign flips of the
    weighted differences. None where there is no sample.

    Args:
        clusters: as of `stderr`; the differences of a cluster are flipped as one.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} scores against {len(b)}: a paired test needs the same samples")
    if len(a) == 0:
        return None
    if clusters is None and is_binary(a) and is_binary(b):
        return mcnemar(a, b)
    strata = strata or [""] * len(a)
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    shares, _ = contributions(differences[None], weights(strata), strata, clusters)
    return sign_flips(shares[0])
