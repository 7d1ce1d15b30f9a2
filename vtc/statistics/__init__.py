"""Error bars, paired tests and corrections, and what they say of two runs."""

from vtc.statistics.compare import compare, compare_samples
from vtc.statistics.estimates import Estimate, Z, holm, paired_estimate
from vtc.statistics.scores import mcnemar, mean, paired, sign_flips, stderr, weights

__all__ = [
    "Z",
    "Estimate",
    "compare",
    "compare_samples",
    "holm",
    "mcnemar",
    "mean",
    "paired",
    "paired_estimate",
    "sign_flips",
    "stderr",
    "weights",
]
