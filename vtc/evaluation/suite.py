"""What a suite says of its tasks: `benchmark.about` of the configuration.

    about:
      mme: {paper: MME, metric: mme_perception_score, scale: 2000, data: lmms-lab-encoder/MME, licence: …}

A suite of one's own says the same in the same words (docs/evaluate.md). What it leaves out of a task that a shipped
suite has is taken from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from vtc import shipped
from vtc.errors import UserError, nearest

NEEDS = ("java", "judge", "folder", "video", "spacy", "web")
OWN = ("pocket", "jsonl", "hf")  # benchmarks that bring their data themselves


@dataclass(frozen=True)
class About:
    """What is known of one task.

    Attributes:
        paper: what the papers call it.
        metric: the headline metric, as lmms-eval names it; None: the task's own, its first.
        scale: the headline value is divided by it in averages, so that all tasks speak of a share: 100 for percentages,
            2000 for MME's perception score; 1 for what is a share already.
        data: the data set on the hub, or the folder inside `benchmark.data`.
        files: what that folder holds, where it is no data set.
        licence: of the data.
        requires: of `NEEDS`, what must be there before a run.
        instead: a task that asks the same and requires less.
        max_new_tokens: for a task that sets none; without, a rambling answer would go on for 1,024 tokens.
        samples_mean: the headline is the mean of the samples' scores, where upstream divides by the size of the whole
            set however many were scored.
        together: questions in a row that are scored as one: `benchmark.limit` must be a multiple of it, and where one
            of them can't be answered, none of them counts.
        note: what a reader of the score should know.
    """

    paper: str = ""
    metric: str | None = None
    scale: float = 1.0
    data: str | None = None
    files: tuple[str, ...] = ()
    licence: str = ""
    requires: tuple[str, ...] = ()
    instead: str | None = None
    max_new_tokens: int | None = None
    samples_mean: bool = False
    together: int = 1
    note: str = ""


KEYS = tuple(f.name for f in fields(About))


def about(benchmark: Mapping[str, Any], task: str) -> About:
    """What the `benchmark` section of a configuration says of a task; else what a shipped suite or `TRAPS` does.

    Raises:
        UserError: a key or a value that it can't have.
    """
    known = _shipped().get(task) or TRAPS.get(task) or {}
    own = (benchmark.get("about") or {}).get(task) or {}
    return _entry(task, {**known, **own})


def _entry(task: str, given: Mapping[str, Any]) -> About:
    where = f"benchmark.about.{task}"
    for key in given:
        if key not in KEYS:
            raise UserError(f"{where}.{key}: unknown; allowed: {', '.join(KEYS)}{nearest(str(key), KEYS)}")
    values = dict(given)
    for key in ("requires", "files"):
        values[key] = tuple(values.get(key) or ())
    for need in values["requires"]:
        if need not in NEEDS:
            raise UserError(f"{where}.requires: {need}: unknown; allowed: {', '.join(NEEDS)}{nearest(need, NEEDS)}")
    scale = values.get("scale", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or scale <= 0:
        raise UserError(f"{where}.scale={scale}: allowed: a number above 0, what the full score is")
    return About(**{**values, "scale": float(scale)})


@lru_cache(maxsize=1)
def _shipped() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for suite in suites().values():
        for task, entry in suite["about"].items():
            found.setdefault(task, entry)
    return found


def suites() -> dict[str, dict[str, Any]]:
    """The shipped suites by name, as their files say, those without `about` left out."""
    found = {}
    for file in sorted((shipped.path("conf") / "benchmark").glob("*.yaml")):
        if content := read(file):
            found[file.stem] = content
    return found


def read(file: Path) -> dict[str, Any] | None:
    """A suite's file; None where it is none."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) and isinstance(content.get("about"), dict) else None


# Upstream tasks that are in no suite because something that a suite has does the same without a trap.
TRAPS: dict[str, dict[str, Any]] = {
    "mmbench_en_dev": {"metric": "gpt_eval_score", "scale": 100, "requires": ["judge"],
                       "instead": "mmbench_en_dev_static"},
    "mmbench_en_dev_lite": {"metric": "gpt_eval_score", "scale": 100, "requires": ["judge"]},
    "mmbench_cn_dev": {"metric": "gpt_eval_score", "scale": 100, "requires": ["judge"],
                       "instead": "mmbench_cn_dev_static"},
    "mmbench_cn_dev_lite": {"metric": "gpt_eval_score", "scale": 100, "requires": ["judge"]},
    "hallusion_bench_image": {"metric": "aAcc", "scale": 100, "requires": ["judge"],
                              "instead": "hallusion_bench_yes_no"},
    "activitynetqa": {"metric": "gpt_eval_accuracy", "scale": 100, "requires": ["judge", "video"],
                      "instead": "activitynet_qa"},
    "coco_karpathy_val": {"metric": "coco_CIDEr", "requires": ["java", "web"], "instead": "coco2017_cap_val"},
    "coco_karpathy_test": {"metric": "coco_CIDEr", "requires": ["java", "web"], "instead": "coco2017_cap_val"},
    "coco2014_cap_val": {"metric": "coco_CIDEr", "requires": ["java"], "instead": "coco2017_cap_val_no_java"},
    "amber_g": {"metric": "amber_cover", "scale": 100, "requires": ["spacy"], "instead": "pope"},
    "coco_cap_chair": {"metric": "coco_cap_recall", "scale": 100, "requires": ["spacy"], "instead": "pope"},
}  # fmt: skip
