"""What the page shows of the tables, as plain values: scores, costs, ranks' tests and the run behind each number."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vtc import results
from vtc.report.collection import Setting, describe
from vtc.report.runs import ALL, Run
from vtc.report.tables import columns, short
from vtc.statistics import Estimate
from vtc.statistics.differences import LEVEL

DIGITS = 5  # of a number on the page, which shows three


def setting_view(setting: Setting, differences: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A table: its runs, what they are relative to, and the tests between them.

    Args:
        differences: as `vtc.report.tables.differences` gives them.
    """
    groups = columns(setting)
    number = {(run.label, run.tokens): at for at, run in enumerate(setting.runs)}
    agreements = agreement(setting)
    first = setting.runs[0]
    return {
        "name": setting.name,
        "about": setting.about,
        "backbone": first.result["backbone"]["name"],
        "benchmark": (first.config.get("benchmark") or {}).get("name", ""),
        "pocket": str((first.config.get("backbone") or {}).get("name")).startswith("pocket"),
        "notes": setting.notes,
        "groups": [[g, "all tasks" if g == ALL else g] for g in groups]
        + [[task, short(task, setting.tasks)] for task in setting.tasks],
        "tasks": list(setting.tasks),
        "reference": {g: _round(setting.reference(g)) for g in groups},
        "blind": {g: _round(first.mean("blind", g)) for g in groups},
        "budget": _round(commonest_budget(setting)),
        "runs": [run_view(run, groups, setting.tasks, agreements.get(run)) for run in setting.runs],
        "pairs": [
            [
                number[d["better"], d["tokens"]],
                number[d["worse"], d["tokens"]],
                *(_round(d[key]) for key in ("difference", "p_value", "p_holm")),
                d["test"],
            ]
            for d in differences
        ],
        "alpha": LEVEL,
    }


def run_view(run: Run, groups: Sequence[str], tasks: Sequence[str], agrees: float | None) -> dict[str, Any]:
    """A run: its numbers, and where they come from."""
    scores = {g: _pair(run.score(g)) for g in groups} | {t: _pair(run.scores[t]) for t in tasks if t in run.scores}
    retained = {g: _round(run.retained(g)) for g in groups}
    retained |= {task: _round(run.rows[task].get("retained")) for task in tasks if task in run.rows}
    manifest = (run.result["checkpoint"] or {}).get("manifest") or {}
    return {
        "label": run.label,
        "method": run.method,
        "name": describe(run),
        "baseline": run.is_baseline,
        "trained": bool(run.result["checkpoint"]),
        "tokens": _round(run.tokens),
        "scores": scores,
        "retained": retained,
        "agreement": _round(agrees),
        "flops": _round(run.flops_ratio),
        "ttft": _inside(run, "ttft_ms", "median"),
        "faster": _round(run.cost("ttft_speedup")),
        "throughput": _inside(run, "throughput"),
        "bytes": _round(run.cost("kv_cache_bytes")),
        "seconds": _round(manifest.get("seconds")),
        "id": run.id,
        "created": run.created,
        "command": str(run.result["run"].get("command", "")),
        "file": str(run.path),
        "details": json.dumps({key: run.result[key] for key in ("run", "config", "budget", "efficiency")}, indent=1),
    }


def agreement(setting: Setting) -> dict[Run, float]:
    """Run → the share of questions that it answers word for word as the uncompressed backbone does, where both have
    their answers beside them."""
    baselines = {run.id: run for run in setting.runs if run.is_baseline}
    answers: dict[Run, Any] = {}
    out: dict[Run, float] = {}
    for run in setting.runs:
        named = (run.result.get("baseline") or {}).get("id")
        base = baselines.get(str(named)) or (next(iter(baselines.values())) if len(baselines) == 1 else None)
        if base is None or run.samples is None or base.samples is None:
            continue
        for one in (run, base):
            if one not in answers:
                answers[one] = _answers(one)
        mine, theirs = answers[run], answers[base]
        if mine is not None and theirs is not None:
            shared = mine.index.intersection(theirs.index)
            if len(shared):
                out[run] = float((mine.loc[shared] == theirs.loc[shared]).mean())
        if run is not base:
            del answers[run]
    return out


def _answers(run: Run) -> Any:
    """A run's answers by question; None where they are not kept."""
    try:
        frame = results.samples(run.path, ["task", "id", "prediction", "error"])
    except (OSError, ValueError):
        return None
    if "prediction" not in frame:
        return None
    answered = frame[frame["error"].isna()] if "error" in frame else frame
    answers = answered.set_index(["task", "id"])["prediction"]
    return answers[~answers.index.duplicated()].fillna("")


def commonest_budget(setting: Setting) -> float | None:
    """The number of tokens that most methods have a run of."""
    left = [(run.label, run.tokens) for run in setting.runs if not run.is_baseline]
    counts = Counter(tokens for _, tokens in set(left) if tokens is not None)
    return max(counts, key=lambda tokens: (counts[tokens], -tokens)) if counts else None


def _pair(score: Estimate) -> list[float | None]:
    return [_round(score.value), _round(score.half)]


def _inside(run: Run, section: str, key: str | None = None) -> float | None:
    """A number of a section of `efficiency`; of throughputs by length that of the longest answers."""
    numbers = (run.result["efficiency"] or {}).get(section)
    if not isinstance(numbers, Mapping) or not numbers:
        return None
    name = key if key is not None else max(numbers, key=lambda n: float(n) if str(n).isdigit() else -1.0)
    return _round(numbers.get(name))


def _round(value: Any) -> float | None:
    """A number with `DIGITS` significant digits; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")
