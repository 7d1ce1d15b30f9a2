"""Do the tests and intervals say what they claim? Simulated runs whose true difference is known.

    python benchmarks/statistics/calibration.py benchmarks/statistics/calibration.json

Samples and seeds are drawn anew in each simulation. Scores are 0/1, made of a difficulty a sample, the luck of a
training and, in clusters, what is common to look-alikes; the two methods share difficulties, so that their scores are
paired. `false_positives`: identical methods that the test tells apart (5 % ± 1.5). `coverage`: intervals that hold the
true difference (95 % ± 2). `power`: planted differences of the stated smallest size that are found (80 % ± 5).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import ndtr, ndtri

from vtc.statistics import paired_estimate, weights

SIMULATIONS = 2_000
SEED = 0


@dataclass(frozen=True)
class Design:
    """Runs that are simulated.

    Attributes:
        tasks: samples of each task; seeds: trainings of each method.
        between: standard deviation of a training's luck, on the scale on which a sample's difficulty is 1.
        cluster: samples that look alike, side by side; 1: none.
        grouped: whether the test is told of the clusters.
    """

    tasks: tuple[int, ...] = (200, 200)
    seeds: int = 1
    between: float = 0.0
    cluster: int = 1
    grouped: bool = True


DESIGNS = {
    "one seed, 400 samples": Design(),
    "one seed, nine tasks of 60": Design((60,) * 9),
    "one seed, 50 clusters of four": Design((200,), cluster=4),
    "three seeds, no luck in training": Design(seeds=3),
    "three seeds, some luck": Design(seeds=3, between=0.05),
    "three seeds, much luck": Design(seeds=3, between=0.3),
    "five seeds, some luck": Design(seeds=5, between=0.1),
}
UNTOLD = {"one seed, 50 clusters of four, not told of": Design((200,), cluster=4, grouped=False)}


def chances(design: Design, shift: float, rng: np.random.Generator) -> np.ndarray:
    """Differences of two methods' scores, `[seeds, samples]`. Each method answers a sample rightly where its ability,
    its training's luck, the sample's difficulty and noise of its own add up to more than 0; a cluster of look-alikes
    shares what each method makes of it."""
    n, clusters = sum(design.tasks), sum(design.tasks) // design.cluster
    common = rng.normal(size=n)
    right = []
    for ability in (0.8 + shift, 0.8):
        luck = design.between * rng.normal(size=(design.seeds, 1))
        own = np.repeat(rng.normal(size=(design.seeds, clusters)), design.cluster, axis=1)
        noise = rng.normal(size=(design.seeds, n)) if design.cluster == 1 else 0.5 * rng.normal(size=(design.seeds, n))
        right.append(ability + luck + common + (own if design.cluster > 1 else 0.0) + noise > 0)
    return right[0].astype(float) - right[1].astype(float)


def spread(design: Design) -> float:
    """Standard deviation of what is added to a method's ability."""
    own = 1.0 if design.cluster == 1 else 1.25
    return float(np.sqrt(1.0 + own + design.between**2))


def truth(design: Design, shift: float) -> float:
    """The difference of the two methods' scores over all samples and trainings."""
    return float(ndtr((0.8 + shift) / spread(design)) - ndtr(0.8 / spread(design)))


def shift_of(design: Design, difference: float) -> float:
    """The shift in ability that makes a difference of scores."""
    return float(spread(design) * ndtri(ndtr(0.8 / spread(design)) + difference) - 0.8)


def estimate(design: Design, shift: float, rng: np.random.Generator) -> dict:
    cells = [str(task) for task, n in enumerate(design.tasks) for _ in range(n)]
    groups = None
    if design.cluster > 1 and design.grouped:
        groups = [i // design.cluster for i in range(sum(design.tasks))]
    return paired_estimate(chances(design, shift, rng), weights(cells), cells, groups=groups)


def calibrate(design: Design, simulations: int = SIMULATIONS, seed: int = SEED) -> dict[str, float]:
    """Shares of the simulations, see the module; `smallest` is the planted difference, the median of those stated."""
    rng = np.random.default_rng(seed)
    alike = [estimate(design, 0.0, rng) for _ in range(simulations)]
    shift = 0.15
    apart = [estimate(design, shift, rng) for _ in range(simulations)]
    real = truth(design, shift)
    smallest = planted(design, float(np.mean([e["smallest"] for e in alike])), rng)
    found = [estimate(design, shift_of(design, smallest), rng) for _ in range(simulations)]
    return {
        "false_positives": float(np.mean([e["p"] < 0.05 for e in alike])),
        "coverage": float(np.mean([e["low"] <= 0 <= e["high"] for e in alike])),
        "coverage_of_a_difference": float(np.mean([e["low"] <= real <= e["high"] for e in apart])),
        "smallest": smallest,
        "power": float(np.mean([e["p"] < 0.05 for e in found])),
    }


def planted(design: Design, smallest: float, rng: np.random.Generator) -> float:
    """The smallest difference as runs that differ by it state it, in the median: methods that differ more vary more."""
    for _ in range(3):
        stated = [estimate(design, shift_of(design, smallest), rng)["smallest"] for _ in range(200)]
        smallest = float(np.median(stated))
    return smallest


def main(argv: list[str]) -> int:
    rows = {}
    for name, design in (DESIGNS | UNTOLD).items():
        rows[name] = calibrate(design)
        print(name, {key: round(value, 4) for key, value in rows[name].items()}, flush=True)
    if argv:
        command = "python benchmarks/statistics/calibration.py benchmarks/statistics/calibration.json"
        content = {"command": command, "seed": SEED, "simulations": SIMULATIONS, "designs": rows}
        Path(argv[0]).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
