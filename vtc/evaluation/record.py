"""What a run leaves behind: the content of its result file (DESIGN.md, "One result file a run")."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc import results
from vtc.backbones.loading import count
from vtc.evaluation.run_folder import RunFolder
from vtc.evaluation.spec import TaskScores
from vtc.job import Job
from vtc.methods.chain import Chain

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone
    from vtc.interface import Compressor

SHOWN = 100  # bad samples that a result file names; all are in samples.parquet


@dataclass
class Paired:
    """A task's scores beside the baseline's on the same samples."""

    value: float | None
    p_value: float | None
    mine: list[float]
    theirs: list[float]
    strata: list[str]


def result_of(
    run: RunFolder,
    baseline: RunFolder | None,
    tasks: list[TaskScores],
    backbone: Backbone,
    method: Compressor,
    costs: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """The result file's content (DESIGN.md, "One result file a run")."""
    job = run.job
    plain, plain_scores = baseline.read() if baseline is not None else (None, {})
    before = {row["task"]: row["value"] for row in plain["scores"]} if plain else {}
    pairs = {task.task: _paired(task, plain_scores.get(task.task, {}), before.get(task.task)) for task in tasks}
    data = {spec.name: spec.identity[:12] for spec in run.specs}
    rows = [_row(task, pairs[task.task], run.is_baseline) | {"data": data[task.task]} for task in tasks]
    return {
        "run": {
            "id": run.id,
            "costs_id": run.costs_id,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "command": job.command,
            "versions": versions(),
            "git_commit": git_commit(),
            "code": run.code(),
            "seed": job.seed,
            "device": costs["protocol"]["device"],
            "attention": job.backbone.attention,
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "batch_size": job.batch_size,
            "seconds": round(seconds, 1),
        },
        "config": shared(job.config()),
        "backbone": {
            "name": backbone.name,
            "pretrained": shared(run.backbone_source),
            "parameters": count(backbone.model),
            "weights": run.weights[:12],
            "shape": {k: v for k, v in dataclasses.asdict(backbone.shape).items() if k != "name"},
        },
        "method": {
            "name": method.name,
            "tokens": method.tokens,
            "options": dict(job.method.options),
            "layers": sorted(method.layers()),
            "class": f"{type(method).__module__}.{type(method).__qualname__}",
            **({"parts": method.described()} if isinstance(method, Chain) else {}),
        },
        "checkpoint": checkpoint_section(job.weights),
        "budget": budget_section(job, tasks, costs, backbone.shape.depth),
        "scores": rows,
        "means": {g: m for g in results.GROUPS if (m := _mean(g, pairs, rows)) is not None},
        "baseline": None if plain is None else {"id": plain["run"]["id"], "path": f"baselines/{plain['run']['id']}"},
        "efficiency": costs,
        "bad_samples": {
            "count": sum(len(t.bad) for t in tasks),
            "samples": [{"task": t.task, **b} for t in tasks for b in t.bad][:SHOWN],
        },
    }


def _row(task: TaskScores, pair: Paired, is_baseline: bool) -> dict[str, Any]:
    """A task's row of `scores`."""
    base = task.value if is_baseline else pair.value
    return {
        "task": task.task,
        "group": task.group,
        "metric": task.metric,
        "value": task.value,
        "stderr": task.stderr(),
        "n": task.n,
        "baseline": base,
        "retained": task.value / base if task.value is not None and base else None,
        "p_value": pair.p_value,
        "blind": task.floors.get("blind"),
        "bag": task.floors.get("bag"),
        "bad": len(task.bad),
        "unjudged": task.unjudged,
        "metrics": task.metrics,
        "scale": task.scale,
        "share": task.value / task.scale if task.value is not None else None,
        "version": task.version,
    }


def _paired(task: TaskScores, known: Mapping[str, float], value: float | None) -> Paired:
    from vtc import statistics

    both = [s for s in task.scored if s.id in known]
    mine, theirs = [float(s.score) for s in both if s.score is not None], [known[s.id] for s in both]
    strata = [s.stratum for s in both]
    return Paired(value, statistics.paired(mine, theirs, strata) if both else None, mine, theirs, strata)


def _mean(group: str, pairs: Mapping[str, Paired], rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The mean score of a group's tasks as shares of their full scores, each counting alike, with its error and the
    paired test over all samples."""
    import numpy as np

    from vtc import statistics

    members = [r for r in rows if r["group"] == group and r["value"] is not None]
    if not members:
        return None
    value = _average([results.share(r) for r in members])
    errors = [results.share(r, "stderr") for r in members]
    base = _average([results.share(r, "baseline") for r in members])
    tested = [(pairs[r["task"]], r["scale"]) for r in members if pairs[r["task"]].mine]
    differences = [
        statistics.weights(p.strata) * (np.asarray(p.mine) - np.asarray(p.theirs)) / scale for p, scale in tested
    ]
    return {
        "value": value,
        "stderr": float(np.sqrt(np.sum(np.square([e or 0.0 for e in errors]))) / len(members))
        if all(e is not None for e in errors)
        else None,
        "n": sum(r["n"] for r in members),
        "tasks": len(members),
        "baseline": base,
        "retained": value / base if base and value is not None else None,
        "p_value": statistics.sign_flips(np.concatenate(differences)) if len(tested) == len(members) else None,
        **{f: _average([results.share(r, f) for r in members]) for f in ("blind", "bag")},
    }


def _average(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def budget_section(job: Job, tasks: list[TaskScores], costs: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """What was asked for, and what was truly kept on the scored samples (per image); where no task generates, on the
    image that the costs were measured with."""
    kept = [s for t in tasks for s in t.samples if s.tokens_in is not None]
    weighted = [(t.layers, sum(s.tokens_in is not None for s in t.samples)) for t in tasks if t.layers]
    if kept and weighted:
        total = sum(n for _, n in weighted)
        layers = [sum(values[i] * n for values, n in weighted) / total for i in range(depth)]
        tokens_in = sum(s.tokens_in for s in kept) / len(kept)  # type: ignore[misc]
        tokens_out = sum(s.tokens_kept for s in kept) / len(kept)  # type: ignore[misc]
    else:
        layers = [float(v) for v in costs["layer_tokens"]]
        tokens_in, tokens_out = costs["visual_tokens"], costs["visual_tokens_out"]
    average = sum(layers) / len(layers)
    return {
        "requested": job.budget.requested,
        "visual_tokens_in": tokens_in,
        "visual_tokens_out": tokens_out,
        "layer_tokens": layers,
        "layer_average_tokens": average,
        "compression_ratio": tokens_in / average if average else None,
        "flops_ratio": costs["flops_ratio"],
    }


def checkpoint_section(folder: Path | None) -> dict[str, Any] | None:
    if folder is None:
        return None
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = None
    return {"path": shared(folder), "weights": results.hash_weights([folder])[:12], "manifest": manifest}


def shared(value: Any) -> Any:
    """Paths into what comes with vtc as relative ones: a result says the same on every machine."""
    from vtc import shipped

    if isinstance(value, Mapping):
        return {k: shared(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [shared(v) for v in value]
    if isinstance(value, (str, Path)) and os.path.isabs(str(value)):
        try:
            return Path(value).resolve().relative_to(shipped.root()).as_posix()
        except ValueError:
            return str(value)
    return value


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    import vtc

    out = {"vtc": vtc.__version__, "python": sys.version.split()[0]}
    for name in ("torch", "transformers", "lmms_eval", "peft"):
        try:
            out[name] = version(name.replace("_", "-"))
        except PackageNotFoundError:
            out[name] = "unknown"
    return out


def git_commit() -> str | None:
    """The commit of a checkout, `-dirty` where files were changed since; None elsewhere."""
    from vtc import shipped

    def git(*arguments: str) -> str:
        line = ["git", "-C", str(shipped.root()), *arguments]
        return subprocess.run(line, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        commit, changes = (
            git("rev-parse", "HEAD"),
            git("status", "--porcelain", "--untracked-files=no", "--", "vtc", "conf"),
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}-dirty" if changes else commit
