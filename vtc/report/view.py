"""What the page shows of the tables, as plain values: scores, costs, ranks' tests and the run behind each number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from vtc import results
from vtc.identity import digest
from vtc.report import paper
from vtc.report.collection import CONFIGURATION, Setting, commonest_budget, describe, number
from vtc.report.runs import ALL, Run
from vtc.report.split import Split, splits
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
    place = {(run.label, run.tokens): at for at, run in enumerate(setting.runs)}
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
        "runs": [run_view(run, groups, setting.tasks) for run in setting.runs],
        "seeds": [seeds_view(label, runs, setting, groups) for label, runs in families(setting).items()],
        "printed": printed_view(setting),
        "splits": [split_view(part, setting) for part in splits(setting)],
        "pairs": [
            [
                place[d["better"], d["tokens"]],
                place[d["worse"], d["tokens"]],
                *(_round(d[key]) for key in ("difference", "p_value", "p_holm")),
                d["test"],
            ]
            for d in differences
        ],
        "alpha": LEVEL,
    }


def run_view(run: Run, groups: Sequence[str], tasks: Sequence[str]) -> dict[str, Any]:
    """A run: its numbers, and where they come from."""
    scores = {g: _pair(run.score(g)) for g in groups} | {t: _pair(run.scores[t]) for t in tasks if t in run.scores}
    retained = {g: _round(run.retained(g)) for g in groups}
    retained |= {task: _round(run.rows[task].get("retained")) for task in tasks if task in run.rows}
    return {
        "label": run.label,
        "method": run.method,
        "picture": run.picture,
        "name": describe(run),
        "baseline": run.is_baseline,
        "trained": bool(run.result["checkpoint"]),
        "tokens": _round(run.tokens),
        "scores": scores,
        "retained": retained,
        "agreement": _round(run.agreement()),
        "flops": _round(run.flops_ratio),
        "ttft": _round(run.measured("ttft_ms", "median")),
        "faster": _round(run.cost("ttft_speedup")),
        "throughput": _round(run.measured("throughput")),
        "bytes": _round(run.cost("kv_cache_bytes")),
        "seconds": _round(run.training_seconds),
        "id": run.id,
        "created": run.created,
        "command": str(run.result["run"].get("command", "")),
        "file": str(run.path),
    }


def run_details(run: Run) -> dict[str, Any]:
    """What a run's result file states beside its scores."""
    return {key: run.result[key] for key in ("run", "config", "budget", "checkpoint", "efficiency")}


def families(setting: Setting) -> dict[str, list[Run]]:
    """Runs that differ in their seed and the weights that it trained, in nothing else, at one number of tokens; by the
    label that they share."""
    alike: dict[str, list[Run]] = {}
    for run in setting.runs:
        known = {key: run.config.get(key) for key in CONFIGURATION if key not in ("seed", "checkpoint")}
        known |= {"picture": run.picture, "tokens_left": run.tokens, "trained": bool(run.result["checkpoint"])}
        alike.setdefault(digest(known), []).append(run)
    out = {}
    for runs in alike.values():
        seeds = [run.config.get("seed") for run in runs]
        if len(runs) > 1 and len({str(seed) for seed in seeds}) == len(runs):
            shared = set.intersection(*(set(extras(run)) for run in runs))
            said = [extra for extra in extras(runs[0]) if extra in shared]
            name = runs[0].method + (f" ({', '.join(said)})" if said else "")
            out[f"{name}\n{number(runs[0].tokens)}"] = runs
    return out


def extras(run: Run) -> list[str]:
    """What a label says beside the method."""
    return run.label.partition(" (")[2].removesuffix(")").split(", ") if " (" in run.label else []


def seeds_view(label: str, runs: Sequence[Run], setting: Setting, groups: Sequence[str]) -> dict[str, Any]:
    """Runs of several seeds as one: their mean, and between them the standard deviation."""
    views = [run_view(run, groups, setting.tasks) for run in runs]
    out = {**views[0], "label": label.partition("\n")[0], "members": [setting.runs.index(run) for run in runs]}
    out["name"] = f"{out['label']}, {number(runs[0].tokens)} tokens, {len(runs)} seeds"
    out["scores"] = {}
    for key in views[0]["scores"]:
        values = [view["scores"][key][0] for view in views if key in view["scores"]]
        out["scores"][key] = [_round(mean(values)), _round(stdev(values)) if len(values) > 1 else None]
    for key in ("agreement", "flops", "ttft", "faster", "throughput", "bytes", "seconds"):
        values = [view[key] for view in views if view[key] is not None]
        out[key] = _round(mean(values)) if values else None
    for key in out["retained"]:
        values = [view["retained"].get(key) for view in views if view["retained"].get(key) is not None]
        out["retained"][key] = _round(mean(values)) if values else None
    return out


def printed_view(setting: Setting) -> list[dict[str, Any]]:
    """The papers' numbers on the same backbone, methods and benchmarks, in the unit of the task."""
    seen = {}
    for printed, run, mine in paper.beside(setting.runs):
        about = (run.config.get("benchmark") or {}).get("about") or {}
        for task, score in run.rows.items():
            # A task's headline alone is drawn: of captions the papers print several metrics.
            headline = math.isclose(results.share(score) or 0.0, mine.value)
            if headline and printed.share is not None and (about.get(task) or {}).get("paper") == printed.benchmark:
                row = {"task": task, "tokens": _round(printed.tokens if printed.tokens is not None else run.tokens)}
                row |= {"score": _round(printed.share * run.scales[task]), "label": printed.label}
                seen[str(row)] = row | {"where": paper.title(printed.reference)}
    return list(seen.values())


def split_view(part: Split, setting: Setting) -> dict[str, Any]:
    """A method on the samples that take compression to answer, and on those that a smaller picture answers too."""
    row = {"run": setting.runs.index(part.run), "n_hard": part.n_hard, "n_easy": part.n_easy}
    return row | {key: None if e is None else _pair(e) for key, e in (("hard", part.hard), ("easy", part.easy))}


def _pair(score: Estimate) -> list[float | None]:
    return [_round(score.value), _round(score.half)]


def _round(value: Any) -> float | None:
    """A number with `DIGITS` significant digits; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")
