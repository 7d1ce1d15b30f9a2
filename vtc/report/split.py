"""Scores on the samples that take compression to answer: VTC-Bench's split (arXiv 2510.07143).

Of many questions a picture that is simply made smaller answers as well, and a score over all of them says little of how
well a method chooses. The split keeps the samples that the uncompressed model gets right and downsampling at the same
budget gets wrong (hard), and sets beside them those that both get right (easy).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vtc.report.collection import Setting
from vtc.report.runs import Run
from vtc.statistics import Estimate, side_by_side

RIGHT = 0.5  # share of the full score from which on a sample counts as answered rightly
DOWNSAMPLE = "downsample"


@dataclass(frozen=True)
class Split:
    """A method on the two parts.

    Attributes:
        hard, easy: mean over the samples of all tasks; None where there is none.
        n_hard, n_easy: samples of each part.
    """

    run: Run
    hard: Estimate | None
    easy: Estimate | None
    n_hard: int
    n_easy: int


def splits(setting: Setting) -> list[Split]:
    """Every method at each budget of which downsampling and the uncompressed model were scored, sample by sample; the
    best on the hard samples first."""
    plain = next((run for run in setting.runs if run.is_baseline and run.samples is not None), None)
    out: list[Split] = []
    for smaller in setting.runs:
        if plain is None or smaller.method != DOWNSAMPLE or smaller.samples is None or smaller.picture != "own":
            continue
        rivals = [
            run
            for run in setting.runs
            if run.tokens == smaller.tokens and run.samples is not None and not run.is_baseline and run is not smaller
        ]
        if rivals:
            out += sorted(_split(plain, smaller, rivals), key=lambda s: -(s.hard.value if s.hard else -1.0))
    return out


def _split(plain: Run, smaller: Run, rivals: list[Run]) -> list[Split]:
    table = side_by_side([run.samples for run in (plain, smaller, *rivals)]).dropna()
    full = np.array([plain.scales.get(task, 1.0) for task in table.index.get_level_values("task")])
    shares = table.to_numpy(float) / full[:, None]
    right = shares >= RIGHT
    hard, easy = right[:, 0] & ~right[:, 1], right[:, 0] & right[:, 1]
    return [
        Split(run, _estimate(shares[hard, 2 + at]), _estimate(shares[easy, 2 + at]), int(hard.sum()), int(easy.sum()))
        for at, run in enumerate(rivals)
    ]


def _estimate(scores: np.ndarray) -> Estimate | None:
    if not len(scores):
        return None
    return Estimate(float(scores.mean()), float(scores.std(ddof=1)) / len(scores) ** 0.5 if len(scores) > 1 else None)
