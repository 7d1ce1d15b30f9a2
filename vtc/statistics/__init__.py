"""Error bars, paired tests and corrections, and what they say of two runs."""

from vtc.statistics.compare import agreement, by_question, compare, compare_samples, question_weights, side_by_side
from vtc.statistics.differences import (
    bootstrap,
    contributions,
    ends,
    resampled,
    smallest_difference,
    standard_errors,
    verdict,
)
from vtc.statistics.estimates import Estimate, Z, holm, paired_estimate
from vtc.statistics.scores import mcnemar, mean, paired, sign_flips, stderr, weights

__all__ = [
    "Z",
    "Estimate",
    "agreement",
    "bootstrap",
    "by_question",
    "compare",
    "compare_samples",
    "contributions",
    "ends",
    "holm",
    "mcnemar",
    "mean",
    "paired",
    "paired_estimate",
    "question_weights",
    "resampled",
    "side_by_side",
    "sign_flips",
    "smallest_difference",
    "standard_errors",
    "stderr",
    "verdict",
    "weights",
]
