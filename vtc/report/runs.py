"""Results as the report sees them: each one checked, with the scores of its samples."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vtc import results
from vtc.allowed import brief
from vtc.report.questions import Questions, read_scores
from vtc.statistics import Estimate

BASELINE = "none"
ALL = "all"
CLOSE = 1e-6  # what rounding may change of a number that follows from others


@dataclass(eq=False)
class Run:
    """One result file.

    Attributes:
        label: the method, with what tells it from other runs of the same method.
        rows: task → its row of `scores`, that of its headline metric.
        samples: scores of the samples, a series over questions (`vtc.statistics.by_question`); None: not known.
        note: why `samples` are not known, where they are there.
        questions: what `samples` are scores of.
        agreements: task → share of its answers that are the uncompressed model's, where the result doesn't state it.
    """

    path: Path
    result: Mapping[str, Any]
    label: str
    rows: dict[str, Mapping[str, Any]]
    samples: Any = None
    note: str = ""
    questions: Questions | None = None
    agreements: dict[str, float] = field(default_factory=dict)
    _scores: dict[str, Estimate] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Run:
        """The run of a result file.

        Raises:
            ValueError, OSError: it isn't one, can't be read, or says of itself what can't all be true.
        """
        result = results.load(path)
        rows: dict[str, Mapping[str, Any]] = {}
        for row in result["scores"]:
            if row["value"] is not None:
                rows.setdefault(row["task"], row)  # a task's first row is its headline metric
        if not rows:
            raise ValueError(f"{path}: no scores")
        try:
            json.dumps(result, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:  # a page could not be written
            raise ValueError(f"{path}: not a result file ({error})") from error
        for section in ("method", "backbone"):
            if "name" not in result[section]:
                raise ValueError(f"{path}: {section}.name: missing")
        run = cls(path, result, result["method"]["name"], rows)
        try:
            if known := read_scores(path):
                run.samples, run.questions = known
        except (ValueError, OSError) as error:
            run.note = f"{error}: its samples are left out"
        if contradiction := run._contradiction():
            raise ValueError(f"{path}: {contradiction}")
        return run

    def _contradiction(self) -> str:
        """Which of its numbers doesn't follow from the others, as after an edit; empty where all do."""
        scored = self.questions.means(self.samples.to_numpy()) if self.questions else {}
        if lost := [task for task in scored if task not in self.rows]:
            return f"{brief(lost[0], 60)}: its samples have scores, and it has none"
        for task, row in self.rows.items():
            follows: dict[str, float] = {"share": results.share(row) or 0.0}
            if row.get("baseline"):
                follows["retained"] = row["value"] / row["baseline"]
            if task in scored:
                follows["n"], follows["value"] = scored[task]
            for key, value in follows.items():
                if row.get(key) is not None and not math.isclose(row[key], value, rel_tol=CLOSE, abs_tol=CLOSE):
                    return f"{task}: {key} is {row[key]:.6g}, and {value:.6g} by what it is made of"
        return ""

    @property
    def config(self) -> Mapping[str, Any]:
        return self.result["config"]

    @property
    def id(self) -> str:
        return self.result["run"].get("id", "")

    @property
    def created(self) -> str:
        return self.result["run"].get("created", "")

    @property
    def method(self) -> str:
        return self.result["method"]["name"]

    @property
    def tokens(self) -> float | None:
        """Visual tokens an image has left at the end; of a budget that is a mean the mean that was asked for (what was
        measured lacks a fraction of a token): so it stands beside the other runs of that budget."""
        budget = self.result["budget"]
        asked = self.result["method"].get("tokens") if budget.get("spread") else None
        return budget.get("visual_tokens_out") if asked is None else float(asked)

    @property
    def flops_ratio(self) -> float | None:
        """Prefill FLOPs relative to the uncompressed backbone."""
        return self.result["budget"].get("flops_ratio")

    def cost(self, key: str) -> Any:
        """A number of `efficiency`; None where it wasn't measured."""
        return (self.result["efficiency"] or {}).get(key)

    def measured(self, section: str, key: str | None = None) -> float | None:
        """A number of a section of `efficiency`; of throughputs by length (no `key`) that of the longest answers."""
        numbers = self.cost(section)
        if not isinstance(numbers, Mapping) or not numbers:
            return None
        name = key if key is not None else max(numbers, key=lambda n: float(n) if str(n).isdigit() else -1.0)
        return numbers.get(name)

    @property
    def training_seconds(self) -> float | None:
        """How long the training of its weights took, where they state it."""
        return ((self.result["checkpoint"] or {}).get("manifest") or {}).get("seconds")

    @property
    def picture(self) -> str:
        """Which picture each question was asked about (`benchmark.picture`)."""
        return (self.config.get("benchmark") or {}).get("picture") or "own"

    def agreement(self, group: str = ALL) -> float | None:
        """Share of the answers that are the uncompressed model's, mean over the tasks of a group; None where a task's
        isn't known."""
        shares = [self.rows[task].get("agreement", self.agreements.get(task)) for task in self.members(group)]
        known = [share for share in shares if share is not None]
        return sum(known) / len(known) if known and len(known) == len(shares) else None

    @property
    def is_baseline(self) -> bool:
        """Whether it is the uncompressed backbone with its own weights."""
        whole = self.method == BASELINE and not self.result["checkpoint"]
        return whole and self.picture == "own" and not self.result.get("baseline")

    @cached_property
    def scores(self) -> dict[str, Estimate]:
        """Task → headline score."""
        return {task: Estimate(row["value"], row.get("stderr")) for task, row in self.rows.items()}

    @cached_property
    def scales(self) -> dict[str, float]:
        """Task → its full score."""
        return {task: float(row.get("scale") or 1.0) for task, row in self.rows.items()}

    def group_of(self, task: str) -> str:
        return self.rows[task].get("group") or "understanding"

    def members(self, group: str) -> list[str]:
        """The tasks of a group; every task for `all`."""
        return [t for t in self.rows if group in (ALL, self.group_of(t))]

    def mean(self, key: str, group: str = ALL) -> float | None:
        """Mean of a number over the tasks of a group, as shares of their full scores; None where a task lacks it."""
        shares = [results.share(self.rows[task], key) for task in self.members(group)]
        known = [share for share in shares if share is not None]
        return sum(known) / len(known) if known and len(known) == len(shares) else None

    def score(self, group: str = ALL) -> Estimate:
        """Mean over the tasks of a group, as shares of their full scores."""
        if group not in self._scores:
            rows = [self.rows[task] for task in self.members(group)]
            parts = [Estimate(results.share(r) or 0.0, results.share(r, "stderr")) for r in rows]
            self._scores[group] = Estimate.mean(parts)
        return self._scores[group]

    def retained(self, group: str = ALL) -> float | None:
        """Mean score relative to the uncompressed backbone's mean on the same tasks."""
        if self.is_baseline:
            return 1.0
        whole = self.mean("baseline", group)
        return self.score(group).value / whole if whole else None
