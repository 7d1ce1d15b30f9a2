"""Samples and seeds as two levels: what the variance of a difference is, and the smallest one that so many show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vtc.statistics.differences import LEVEL, POWER

QUANTILES = (np.arange(128) + 0.5) / 128  # at which what seeds may show is integrated over


@dataclass(frozen=True)
class Levels:
    """Crossed levels, see `vtc.statistics.paired_estimate`.

    Attributes:
        samples: variance of the mean difference that the samples show; rest: what is in that of samples and of seeds.
        freedom: degrees of freedom of the samples.
        seeds: number of seeds.
    """

    samples: float
    rest: float
    freedom: int
    seeds: int

    def law(self, seeds_show: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Variance and degrees of freedom of the mean difference where the seeds show variances of `seeds_show`, each
        `[n]`: what they show beyond the rest is their luck, and none where it is less."""
        luck = np.maximum(seeds_show - self.rest, 0.0)
        variance = self.samples + luck
        if self.seeds == 1:
            return variance, np.full(len(variance), float(self.freedom))
        apart = seeds_show**2 / (self.seeds - 1) + self.samples**2 / self.freedom
        apart += self.rest**2 / (self.freedom * (self.seeds - 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            return variance, np.where(luck > 0, variance**2 / apart, float(self.freedom))

    def smallest(self, seeds_show: float) -> float:
        """The smallest true difference that the test at 5 % finds in 80 % of such samples and trainings.

        Other trainings would show another variance, and so have another test, wide or narrow: its power is averaged
        over what they may show, which for a true variance V is V χ²(k - 1) / (k - 1). V is the one of which what is
        seen is the median, as few trainings show too little of it more often than too much.
        """
        from scipy.optimize import brentq
        from scipy.special import ndtr
        from scipy.stats import chi2, t

        scaled = chi2(self.seeds - 1)
        true = max(seeds_show * (self.seeds - 1) / float(scaled.ppf(0.5)), self.rest)
        variances, degrees = self.law(true * scaled.ppf(QUANTILES) / (self.seeds - 1))
        critical = t.ppf(1 - LEVEL / 2, degrees) * np.sqrt(variances)
        error = float(np.sqrt(self.samples + true - self.rest))
        if error == 0:
            return 0.0

        def missing(difference: float) -> float:
            power = ndtr((difference - critical) / error) + ndtr((-difference - critical) / error)
            return float(power.mean()) - POWER

        return float(brentq(missing, 0.0, float(critical.max()) + 5 * error, xtol=1e-9 * error))
