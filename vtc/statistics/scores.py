"""Error bars and paired tests for task scores.

A task's score is the mean over its strata of the mean over each stratum's samples; nearly every task has one stratum
and so an ordinary mean. Hard captions have three: replace, swap and add count alike however many there are of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Scores = Any  # [n] numbers: a sequence or an array

RESAMPLES = 9_999
SEED = 0


def weights(strata: Sequence[str]) -> np.ndarray:
    """What each sample adds to the score, `[n]`, summing to 1: 1 / (strata × samples of its stratum)."""
    names, index, counts = np.unique(np.asarray(strata, dtype=str), return_inverse=True, return_counts=True)
    return 1.0 / (len(names) * counts[index])


def mean(scores: Scores, strata: Sequence[str] | None = None) -> float | None:
    """The score; None where there is no sample."""
    if len(scores) == 0:
        return None
    return float(np.dot(weights(strata or [""] * len(scores)), np.asarray(scores, dtype=float)))


def is_binary(scores: Scores) -> bool:
    return bool(np.isin(np.asarray(scores, dtype=float), (0.0, 1.0)).all())


def stderr(scores: Scores, strata: Sequence[str] | None = None, seed: int = SEED) -> float | None:
    """Standard error of `mean`: binomial, sqrt(p(1-p)/n), for 0/1 scores, else bootstrap over the samples, each
    stratum resampled within itself. None below two samples."""
    if len(scores) < 2:
        return None
    x = np.asarray(scores, dtype=float)
    _, index = np.unique(np.asarray(strata or [""] * len(x), dtype=str), return_inverse=True)
    groups = [x[index == g] for g in range(index.max() + 1)]
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


def sign_flips(differences: Scores, seed: int = SEED) -> float:
    """Two-sided paired permutation test that (weighted) differences are symmetric about 0: all 2^n ways to flip their
    signs where those are fewer than `RESAMPLES`, else that many random ones. 1 where there is no difference."""
    d = np.asarray(differences, dtype=float)
    d = d[d != 0]
    if len(d) == 0:
        return 1.0
    exact = 2 ** min(len(d), 62) <= RESAMPLES
    if exact:
        signs = 1.0 - 2.0 * ((np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1)
    else:
        signs = np.random.default_rng(seed).integers(0, 2, (RESAMPLES, len(d)), dtype=np.int8) * 2.0 - 1.0
    observed = abs(d.sum())
    extreme = int((np.abs(signs @ d) >= observed * (1 - 1e-12)).sum())
    # The observed signs are one of the ways: enumerated, they are counted; drawn, they are added (Phipson & Smyth).
    return extreme / len(signs) if exact else (extreme + 1) / (RESAMPLES + 1)


def paired(a: Scores, b: Scores, strata: Sequence[str] | None = None) -> float | None:
    """p-value that `a` and `b`, scores of the same samples, differ: exact McNemar for 0/1, else sign flips of the
    weighted differences. None where there is no sample."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} scores against {len(b)}: a paired test needs the same samples")
    if len(a) == 0:
        return None
    if is_binary(a) and is_binary(b):
        return mcnemar(a, b)
    w = weights(strata or [""] * len(a))
    return sign_flips(w * (np.asarray(a, dtype=float) - np.asarray(b, dtype=float)))
