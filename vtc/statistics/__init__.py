"""Error bars, paired tests and corrections, and what they say of two runs."""

from vtc.statistics.compare import compare, compare_samples
from vtc.statistics.scores import chance_corrected, is_binary, mcnemar, mean, paired, sign_flips, stderr, weights

__all__ = [
    "chance_corrected",
    "compare",
    "compare_samples",
    "is_binary",
    "mcnemar",
    "mean",
    "paired",
    "sign_flips",
    "stderr",
    "weights",
]
