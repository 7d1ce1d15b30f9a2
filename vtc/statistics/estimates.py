"""Scores with their errors, differences over samples and trainings, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vtc.statistics.scores import sign_flips

Z = 1.959964  # two-sided 95 % of a normal distribution


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
    table: np.ndarray, weights: np.ndarray, cells: Sequence[str], within: float = 0.0, flips: bool = True
) -> dict[str, Any]:
    """Mean difference, its 95 % interval, and the p-value that it is not `-within`.

    With one seed the p-value is that of sign flips of the paired differences (a normal test where there is a margin or
    a floor). With several, differences are averaged over the seeds sample by sample; the variance of that mean over
    samples and the variance between the seeds' mean differences, divided by their number, add up, and Student's t with
    Welch's and Satterthwaite's degrees of freedom gives p and interval.

    Args:
        table: differences `[seeds, samples]`.
        weights: what each sample adds to the mean `[samples]`, summing to 1.
        cells: the task and stratum of each sample; samples vary within these.
        flips: whether, with one seed and no margin, p is that of sign flips instead of a normal test.
    """
    from scipy.stats import norm, t

    mean = table.mean(axis=0)
    difference, between, count = float(mean @ weights), 0.0, len(table)
    _, index = np.unique(np.asarray(cells, dtype=str), return_inverse=True)
    variance = 0.0
    for cell in range(index.max() + 1):
        members = index == cell
        if members.sum() > 1:
            variance += weights[members].sum() ** 2 * mean[members].var(ddof=1) / members.sum()
    if count > 1:
        between = float((table @ weights).var(ddof=1)) / count
    error = math.sqrt(variance + between)
    law = t((variance + between) ** 2 / (between**2 / (count - 1))) if between > 0 else norm
    half = float(law.ppf(0.975)) * error
    if count == 1 and within == 0 and flips:
        p = sign_flips(weights * mean)
    elif error == 0:
        p = 1.0 if difference == -within else 0.0
    else:
        p = float(2 * law.sf(abs(difference + within) / error))
    return {"difference": difference, "low": difference - half, "high": difference + half, "p": p}
