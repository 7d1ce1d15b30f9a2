"""Does a claim of a paper hold here? Verdicts from paired samples.

Every sample of the tasks in question is scored under both variants; its difference counts with what it adds to the mean
score (`vtc.statistics.weights`, every task alike). A claim that A beats B is that the mean difference is
above 0, a claim that A is not worse by more than m that it is above -m.

The test is `vtc.statistics.paired_estimate`. With one seed it speaks of these two sets of weights on other samples of
the same tasks, not of another training. The p-values of an experiment's claims are Holm-corrected.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from vtc import results
from vtc.ablations.experiments import FLOORS, Claim
from vtc.statistics import by_question, holm, paired_estimate, question_weights, side_by_side
from vtc.statistics.compare import cells, clusters

AGREES, DISAGREES, OPEN, MISSING, UNTESTED = "agrees", "disagrees", "can't tell", "not run", "not tested"
LEVEL = 0.05
NOISE = 0.05  # timings of one training each are told apart from here on


@dataclass
class Outcome:
    """One variant under one seed: its result, its samples, and how its weights were trained (None: not here)."""

    result: Mapping[str, Any]
    samples: Any
    training: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, folder: Path) -> Outcome:
        """From a folder with `result.json`, `samples.parquet` and, where it was trained, `training.json`."""
        manifest = folder / "training.json"
        training = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else None
        return cls(results.load(folder), results.samples(folder), training)

    @property
    def scores(self) -> Any:
        """Those of the samples, question by question."""
        return by_question(self.samples)

    @property
    def groups(self) -> dict[str, str]:
        return {row["task"]: row["group"] for row in self.result["scores"]}

    def tasks(self, on: Sequence[str]) -> list[str]:
        """The tasks of a group, or those named."""
        groups = self.groups
        if len(on) == 1 and on[0] not in groups:
            return [t for t, g in groups.items() if on[0] in (g, "all")]
        return list(on)

    def cost(self, key: str) -> float | None:
        """A cost of `vtc.ablations.experiments.COSTS`; None where it wasn't measured."""
        if key == "prefill_flops":
            return (self.result.get("efficiency") or {}).get(key)
        stages = (self.training or {}).get("stages") or []
        steps = sum(s["steps"] for s in stages)
        if key == "training_seconds":
            return sum(s["seconds"] for s in stages) / steps if steps else None
        flops = [s.get("flops_per_step") for s in stages]
        if not steps or any(f is None for f in flops):
            return None
        return sum(f * s["steps"] for f, s in zip(flops, stages, strict=True)) / steps


@dataclass(frozen=True)
class Judgement:
    """What the results say to a claim.

    Attributes:
        verdict: agrees, disagrees, can't tell, not run, not tested.
        difference: mean score of `better` minus that of `worse`; of costs the ratio.
        low, high: its 95 % confidence interval.
        p: that the difference is what the claim denies, by chance; `p_holm` corrected for the experiment's claims.
        n: paired samples; `seeds`: trainings of each; `spread`: the difference under each seed.
        smallest: the difference that so many samples and seeds would show in 80 % of cases, before the correction.
    """

    claim: Claim
    verdict: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    n: int = 0
    seeds: int = 0
    note: str = ""
    spread: tuple[float, ...] = field(default=())
    smallest: float | None = None


Runs = Mapping[str, Mapping[int, Outcome]]  # variant → seed → outcome


def judge(claims: Sequence[Claim], runs: Runs) -> list[Judgement]:
    """A verdict for every claim, in their order."""
    judgements = [_compared(claim, runs) for claim in claims]
    adjusted = holm([j.p for j in judgements])
    return [j if j.p is None else _decide(replace(j, p_holm=q)) for j, q in zip(judgements, adjusted, strict=True)]


def _decide(judgement: Judgement) -> Judgement:
    assert judgement.p_holm is not None and judgement.difference is not None
    if judgement.p_holm >= LEVEL:
        return replace(judgement, verdict=OPEN)
    above = judgement.difference > -judgement.claim.within
    return replace(judgement, verdict=AGREES if above else DISAGREES)


def _compared(claim: Claim, runs: Runs) -> Judgement:
    if claim.untested:
        return Judgement(claim, UNTESTED, note=claim.untested)
    if missing := [name for name in (claim.better, claim.worse) if not runs.get(name) and name not in FLOORS]:
        return Judgement(claim, MISSING, note=f"no result of {', '.join(missing)}")
    worse = runs[claim.better] if claim.worse in FLOORS else runs[claim.worse]
    seeds = _distinct(runs[claim.better], worse)
    return (_costs if claim.cost else _scores)(claim, runs, seeds)


def _distinct(a: Mapping[int, Outcome], b: Mapping[int, Outcome]) -> list[int]:
    """The seeds under which both sides were run; one of those under which both are the same two outcomes, as those
    without training are."""
    return sorted({(id(a[seed]), id(b[seed])): seed for seed in sorted(set(a) & set(b), reverse=True)}.values())


def _scores(claim: Claim, runs: Runs, seeds: Sequence[int]) -> Judgement:
    frames = [_pairs(claim, runs, seed) for seed in seeds]
    if not frames or any(frame is None for frame in frames):
        why = "a floor or a task is not known" if frames else f"no seed with both {claim.better} and {claim.worse}"
        return Judgement(claim, MISSING, note=why)
    shared = reduce(lambda a, b: a.intersection(b, sort=False), (frame.index for frame in frames))
    if not len(shared):
        return Judgement(claim, MISSING, note="no sample that both were scored on")
    weights = question_weights(shared, {})
    table = np.stack([(f.loc[shared, 0] - f.loc[shared, 1]).to_numpy(float) for f in frames])  # [seeds, samples]
    flips = claim.worse not in FLOORS
    estimate = paired_estimate(table, weights, cells(shared), claim.within, flips, clusters(shared))
    return Judgement(claim, OPEN, **estimate, n=len(shared), seeds=len(seeds), spread=tuple(table @ weights))


def _pairs(claim: Claim, runs: Runs, seed: int) -> Any:
    """Questions that both were scored on, `[questions, 2]`; None where a floor or a task is missing."""
    better = runs[claim.better][seed]
    tasks = better.tasks(claim.on)
    a = better.scores[better.scores.index.isin(tasks, level="task")]
    if claim.worse in FLOORS:
        floors = {row["task"]: row.get(claim.worse) for row in better.result["scores"]}
        if any(floors.get(task) is None for task in a.index.unique("task")):
            return None
        b = a.index.get_level_values("task").map(floors).to_series(a.index)
    else:
        b = runs[claim.worse][seed].scores
    pairs = side_by_side([a, b]).dropna()
    return pairs if tasks and set(pairs.index.unique("task")) == set(tasks) else None


def _costs(claim: Claim, runs: Runs, seeds: Sequence[int]) -> Judgement:
    """Costs are compared as they are: FLOPs are exact, timings differ from `NOISE` on."""
    pairs = [(runs[claim.better][s].cost(claim.on[0]), runs[claim.worse][s].cost(claim.on[0])) for s in seeds]
    known = [(a, b) for a, b in pairs if a is not None and b]
    if not known:
        return Judgement(claim, MISSING, note=f"{claim.subject} not measured")
    ratio = sum(a for a, _ in known) / sum(b for _, b in known)
    blur = NOISE if claim.on[0] == "training_seconds" else 0.0
    verdict = AGREES if ratio < 1 - blur else DISAGREES if ratio > 1 + blur else OPEN
    note = "timed once, beside other jobs" if blur else ""
    return Judgement(claim, verdict, difference=ratio, seeds=len(known), note=note)
