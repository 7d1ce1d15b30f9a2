"""Scores with their errors, differences over samples and trainings, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vtc.statistics.differences import bootstrap, contributions, smallest_difference
from vtc.statistics.levels import Levels
from vtc.statistics.scores import sign_flips

Z = 1.959964  # two-sided 95 % of a normal distribution
DIGITS = 12  # behind the point, of an estimate: those behind them are the processor's


@dataclass(frozen=True)
class Estimate:
    """A score with its standard error (None where it is not known)."""

    value: float
    stderr: float | None = None

    @property
    def half(self) -> float | None:
        """Half the width of the 95 % confidence interval."""
        return None if self.stderr is None else Z * self.stderr

    @classmethod
    def mean(cls, parts: Sequence[Estimate]) -> Estimate:
        """Mean of scores of different samples; its standard error is known where all of theirs are."""
        value = sum(p.value for p in parts) / len(parts)
        errors = [p.stderr for p in parts if p.stderr is not None]
        if len(errors) < len(parts):
            return cls(value)
        return cls(value, math.sqrt(sum(e * e for e in errors)) / len(parts))


def holm(p_values: Sequence[float | None], families: Sequence[Any] | None = None) -> list[float | None]:
    """Holm's step-down correction (1979); what has no p-value has no corrected one.

    Args:
        families: which family of tests each is of, for whose number it is corrected; None: all are one.
    """
    out: list[float | None] = [None] * len(p_values)
    members: dict[Any, list[tuple[float, int]]] = {}
    for i, p in enumerate(p_values):
        if p is not None:
            members.setdefault(families[i] if families is not None else None, []).append((p, i))
    for order in members.values():
        highest = 0.0
        for rank, (p, i) in enumerate(sorted(order)):
            out[i] = highest = max(highest, min(1.0, p * (len(order) - rank)))
    return out


def paired_estimate(
    table: np.ndarray,
    weights: np.ndarray,
    cells: Sequence[str],
    within: float = 0.0,
    flips: bool = True,
    groups: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Mean difference, its 95 % interval, the p-value that it is not `-within`, and the smallest difference that so
    many samples and seeds show (`smallest_difference`, `Levels.smallest`).

    With one seed p is that of sign flips of the paired differences (a t-test where there is a margin or a floor) and
    the interval is that of a paired bootstrap, `bootstrap`. With several, samples and seeds are two crossed levels, the
    differences d[s, i] = difference + seed[s] + sample[i] + rest[s, i]. The variance of their mean is what the samples
    show of it plus what the seeds show of it beyond the rest, which is in both (the ANOVA estimate of a two-way layout:
    Searle, Casella and McCulloch, Variance Components, 1992, section 4.3). Student's t with Welch's and Satterthwaite's
    degrees of freedom gives p and interval.

    Args:
        table: differences `[seeds, samples]`.
        weights: what each sample adds to the mean `[samples]`, summing to 1.
        cells: the task and stratum of each sample; samples vary within these.
        flips: whether, with one seed and no margin, p is that of sign flips instead of a t-test.
        groups: samples that belong together, as captions of look-alike scenes do, by any name `[samples]`: they are
            resampled and flipped as one. None: each is its own.
    """
    from scipy.stats import t

    count = len(table)
    shares, cell_of = contributions(table, weights, cells, groups)
    difference = float(table.mean(axis=0) @ weights)
    samples_show, rest, freedom = 0.0, 0.0, 0
    for cell in range(cell_of.max() + 1):
        members = shares[:, cell_of == cell]
        n = members.shape[1]
        if n < 2:
            continue
        samples_show += n * members.mean(axis=0).var(ddof=1)
        freedom += n - 1
        if count > 1:
            left = members - members.mean(axis=0) - members.mean(axis=1, keepdims=True) + members.mean()
            rest += n * float(np.square(left).sum()) / ((count - 1) * (n - 1)) / count
    seeds_show = float((table @ weights).var(ddof=1)) / count if count > 1 else 0.0
    levels = Levels(samples_show, rest, max(freedom, 1), count)
    variances, freedoms = levels.law(np.array([seeds_show]))
    error, degrees = math.sqrt(float(variances[0])), float(freedoms[0])
    law = t(degrees)
    half = float(law.ppf(0.975)) * error
    low, high = difference - half, difference + half
    if count == 1:
        low, high = (float(end) for end in bootstrap(shares.T, cell_of, difference)[0])
    if count == 1 and within == 0 and flips:
        p = sign_flips(shares.sum(axis=0))
    elif error == 0:
        p = 1.0 if difference == -within else 0.0
    else:
        p = float(2 * law.sf(abs(difference + within) / error))
    smallest = smallest_difference(error, degrees) if count == 1 else levels.smallest(seeds_show)
    # Processors add numbers up in different orders. A result half-way between two figures is printed alike by all.
    found = {"difference": difference, "low": low, "high": high, "smallest": float(smallest)}
    return {name: round(value, DIGITS) for name, value in found.items()} | {"p": p}
