"""Stopped at any moment and typed again: the numbers of an undisturbed run, and nothing left lying about."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from attack import Case, Outcome, run
from safetensors.torch import load_file

EVALUATION = ("method=fastv", "tokens=16", "benchmark.limit=60", "benchmark.tasks=[pocket_existence,pocket_counting]",
              "batch_size=8", "output_dir=o")  # fmt: skip
TRAINING = ("action=train", "method=victor", "tokens=16", "output_dir=o", "training.data.batch_size=4",
            "training.data.questions=2", *(f"++training.stages.{n}.{words}" for n in (0, 1) for words in (
                "steps=6", "bf16=false", "checkpoint_every=2", "validate_every=0")))  # fmt: skip
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
REPEATS = 3  # moments for each signal


def scores(folder: Path) -> dict[str, Any]:
    """Task → score of the method's run and of its baseline, and every sample's answer."""
    seen: dict[str, Any] = {}
    for file in sorted((folder / "o").rglob("result.json")):
        result = json.loads(file.read_text())
        name = result["method"]["name"]
        seen[name] = [(row["task"], row["metric"], row["value"]) for row in result["scores"]]
        frame = pd.read_parquet(file.parent / "samples.parquet").sort_values(["task", "id"])
        seen[f"{name} samples"] = list(
            zip(frame["task"], frame["id"], frame["prediction"], frame["score"], strict=True)
        )
    return seen


def left_over(folder: Path) -> list[str]:
    return [
        str(f.relative_to(folder)) for f in (folder / "o").rglob("*") if ".part" in f.name or f.name.endswith(".tmp")
    ]


def equal_scores(right: dict[str, Any], outcome: Outcome) -> str:
    if left := left_over(outcome.folder):
        return f"left lying about: {left}"
    if not list((outcome.folder / "o").rglob("summary.md")):
        return "no summary.md"
    return "" if scores(outcome.folder) == right else "other numbers than the undisturbed run's"


def weights(folder: Path) -> dict[str, Any]:
    return load_file(next((folder / "o").rglob("weights/weights.safetensors")))


def equal_weights(right: dict[str, Any], outcome: Outcome) -> str:
    if left := left_over(outcome.folder):
        return f"left lying about: {left}"
    seen = weights(outcome.folder)
    return "" if seen.keys() == right.keys() and all(seen[k].equal(right[k]) for k in right) else "other weights"


def cases(folder: Path) -> Iterator[Case]:
    moments = random.Random(0)
    for name, argv, read, check in (
        ("evaluation", EVALUATION, scores, equal_scores),
        ("training", TRAINING, weights, equal_weights),
    ):
        place = folder / name
        place.mkdir()
        began = time.monotonic()
        whole = run(Case(name, argv, seconds=400), place)
        seconds = time.monotonic() - began
        assert whole.code == 0, whole.err
        for number, sign in enumerate(SIGNALS * REPEATS):
            after = moments.uniform(0.1, 1.0) * seconds
            yield Case(
                f"{name} {sign.name} {number}",
                argv,
                "works",
                partial(check, read(place)),
                kill=(sign, after),
                seconds=400,
            )
