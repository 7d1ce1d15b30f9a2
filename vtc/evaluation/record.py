"""What a run leaves behind: the content of its result file (DESIGN.md, "One result file a run")."""

from __future__ import annotations

import dataclasses
import datetime
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc import results, statistics
from vtc.backbones.loading import count
from vtc.budget import relative_flops
from vtc.checkpoint import read_manifest
from vtc.evaluation.run_folder import RunFolder
from vtc.evaluation.spec import ScoredSample, TaskScores
from vtc.job import AUTO, Job
from vtc.methods.chain import Chain

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone
    from vtc.interface import Compressor

SHOWN = 100  # bad samples that a result file names; all are in samples.parquet


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
    plain = None if baseline is None else results.load(baseline.path)
    before = {row["task"]: row["value"] for row in plain["scores"]} if plain else {}
    if job.is_baseline:
        before = {task.task: task.value for task in tasks}
    compared = {} if baseline is None else _compared(tasks, baseline)
    data = {spec.name: spec.identity[:12] for spec in run.specs}
    rows = [_row(t, data[t.task], before.get(t.task), compared.get(t.task)) for t in tasks]
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
            **batches(job, tasks),
            "decoding": {"do_sample": False, "set_aside": dict(backbone.decoding_set_aside)},
            "seconds": round(seconds, 1),
        },
        "config": shared(job.config()),
        "backbone": {
            "name": backbone.name,
            "pretrained": shared(job.backbone.source),
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
        "checkpoint": None
        if (folder := job.weights) is None
        else {
            "path": shared(folder),
            "weights": results.hash_weights([folder])[:12],
            "manifest": read_manifest(folder),
        },
        "budget": budget_section(job, tasks, costs, backbone.shape.depth),
        "scores": rows,
        "means": {g: m for g in results.GROUPS if (m := _mean(g, rows, compared)) is not None},
        "baseline": None if plain is None else {"id": plain["run"]["id"], "path": f"baselines/{plain['run']['id']}"},
        "efficiency": costs,
        "bad_samples": {
            "count": sum(len(t.bad) for t in tasks),
            "samples": [{"task": t.task, **b} for t in tasks for b in t.bad][:SHOWN],
        },
    }


def batches(job: Job, tasks: list[TaskScores]) -> dict[str, Any]:
    """The samples of a batch; where they were left open, the most that there were and, task by task, those of the last
    batches."""
    if job.batch_size != AUTO:
        return {"batch_size": job.batch_size}
    rows = {task.task: task.rows for task in tasks if task.rows is not None}
    return {"batch_size": max(rows.values(), default=None), "batches": {"asked": AUTO, "rows": rows}}


def _row(task: TaskScores, data: str, base: float | None, paired: dict[str, Any] | None) -> dict[str, Any]:
    """A task's row of `scores`, beside the baseline's score; `data` is the identity of its questions."""
    return {
        "task": task.task,
        "group": task.group,
        "metric": task.metric,
        "value": task.value,
        "stderr": task.stderr(),
        "n": task.n,
        "baseline": base,
        "retained": task.value / base if task.value is not None and base else None,
        "p_value": paired["p_value"] if paired else None,
        "agreement": paired["agreement"] if paired else None,
        "blind": task.floors.get("blind"),
        "bag": task.floors.get("bag"),
        "bad": len(task.bad),
        "unjudged": task.unjudged,
        "metrics": task.metrics,
        "scale": task.scale,
        "share": task.value / task.scale if task.value is not None else None,
        "version": task.version,
        "data": data,
    }


def _compared(tasks: list[TaskScores], baseline: RunFolder) -> dict[str, dict[str, Any]]:
    """Paired comparison with the baseline's samples, by task and by group."""
    import pandas as pd

    samples = [{"task": task.task, **vars(sample)} for task in tasks for sample in task.samples]
    mine, plain = pd.DataFrame(samples).astype({"score": float}), results.samples(baseline.path)
    rows = [{"task": t.task, "group": t.group, "scale": t.scale} for t in tasks]
    agreements = statistics.agreement(mine, plain)
    compared = statistics.compare_samples(mine, plain, rows)
    return {task: row | {"agreement": agreements.get(task)} for task, row in compared.items()}


def _mean(group: str, rows: list[dict[str, Any]], compared: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The mean score of a group's tasks as shares of their full scores, each counting alike, with its error and the
    paired test over all samples."""
    import numpy as np

    members = [r for r in rows if r["group"] == group and r["value"] is not None]
    if not members:
        return None
    value, base = (_average([results.share(r, key) for r in members]) for key in ("value", "baseline"))
    errors = np.array([results.share(r, "stderr") for r in members], dtype=float)  # NaN: there is none
    return {
        "value": value,
        "stderr": None if np.isnan(errors).any() else float(np.sqrt(np.sum(np.square(errors))) / len(members)),
        "n": sum(r["n"] for r in members),
        "tasks": len(members),
        "baseline": base,
        "retained": value / base if base and value is not None else None,
        "p_value": compared[group]["p_value"] if all(r["task"] in compared for r in members) else None,
        "agreement": _average([r["agreement"] for r in members]),
        **{f: _average([results.share(r, f) for r in members]) for f in ("blind", "bag")},
    }


def _average(values: list[float | None]) -> float | None:
    return None if None in values or not values else sum(values) / len(values)  # type: ignore[arg-type]


def budget_section(job: Job, tasks: list[TaskScores], costs: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """What was asked for, and what was truly kept on the scored samples (per image); where no task generates, on the
    image that the costs were measured with."""
    layers = [float(v) for v in costs["layer_tokens"]]
    tokens_in, tokens_out = costs["visual_tokens"], costs["visual_tokens_out"]
    kept = [s for t in tasks for s in t.samples if s.tokens_in is not None]
    weighted = [(t.layers, sum(s.tokens_in is not None for s in t.samples)) for t in tasks if t.layers]
    if kept and weighted:
        total = sum(n for _, n in weighted)
        layers = [sum(values[i] * n for values, n in weighted) / total for i in range(depth)]
        tokens_in = sum(s.tokens_in for s in kept) / len(kept)  # type: ignore[misc]
        tokens_out = sum(s.tokens_kept for s in kept) / len(kept)  # type: ignore[misc]
    average = sum(layers) / len(layers)
    own = sum(one.visual for one in job.compressor.own_passes(tokens_in, 0))  # passes of the method's own
    return {
        "requested": job.budget.requested,
        "visual_tokens_in": tokens_in,
        "visual_tokens_out": tokens_out,
        "layer_tokens": layers,
        "layer_average_tokens": average,
        "compression_ratio": tokens_in / (average + own) if average else None,
        "flops_ratio": costs["flops_ratio"],
        **({"spread": spread_section(job.compressor, kept)} if job.budget.is_mean else {}),
    }


def spread_section(method: Compressor, kept: Sequence[ScoredSample]) -> dict[str, Any]:
    """Of a budget that is a mean over images: how their numbers of tokens differ (of a sample with several images it is
    their mean), and the mean of what their prefills cost, relative to no compression: of decoder and method, with 64
    text tokens. `flops_ratio` beside it is that of an image with exactly as many as the mean."""
    import statistics

    left = [sample.tokens_kept or 0.0 for sample in kept]
    if not left:
        return {}
    costs = {}
    if method.shape.visual_tokens is not None:
        costs = {n: relative_flops(method.with_tokens(n)) for n in {max(1, round(n)) for n in left}}
    return {
        "tokens_sd": statistics.pstdev(left),
        "tokens_least": min(left),
        "tokens_most": max(left),
        "flops_ratio": statistics.fmean(costs[max(1, round(n))] for n in left) if costs else None,
    }


def shared(value: Any) -> Any:
    """Paths into what comes with vtc as relative ones: a result says the same on every machine."""
    from vtc import shipped

    if isinstance(value, Mapping):
        return {k: shared(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [shared(v) for v in value]
    if not isinstance(value, (str, Path)) or not os.path.isabs(str(value)):
        return value
    path = Path(value).resolve()
    return path.relative_to(shipped.root()).as_posix() if path.is_relative_to(shipped.root()) else str(value)


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


def git_commit(root: Path | None = None) -> str | None:
    """The commit of a checkout (None: that of this vtc), `-dirty` where files were changed since; None elsewhere."""
    from vtc import shipped

    def git(*arguments: str) -> str:
        line = ["git", "-C", str(root or shipped.root()), *arguments]
        return subprocess.run(line, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no", "--", "vtc", "conf")
        return git("rev-parse", "HEAD") + ("-dirty" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None
