"""What of a job can be refused from the configuration alone, without torch or weights.

What a single key may hold stands where the key is declared (`vtc.settings`); what depends on a method and a backbone
(which budgets, which layers, which checkpoint) is `Job.check`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from vtc import shipped, trackers
from vtc.allowed import SHARE, whole
from vtc.errors import UserError, unknown
from vtc.job import Job
from vtc.registry import parts

OWN_DATA = ("jsonl", "hf")  # benchmarks of the user's own questions
SPREAD = ("evaluate", "check", "report")  # actions to which a budget may be a mean over images
POCKET = ("pocket", "pocket1", "pocket2_dense", "pocket2_video")  # benchmarks of drawn scenes


def check(job: Job, values: Mapping[str, Any]) -> None:
    """Checks that need more than one key.

    Args:
        values: the resolved configuration, for keys that only stand for others (`data`, `schedule`).

    Raises:
        UserError: a mean over images that nobody knows, two budgets of a part, stages for a method without any, an
            unknown task, a file that isn't there.
    """
    _check_parts(job)
    _check_mean(job)
    _check_schedule(job, values)
    if job.action == "evaluate":
        _check_tasks(job)
        trackers.check(job.log, "log")
    _check_files(job, values)


def _check_mean(job: Job) -> None:
    """A budget that is a mean over images only where it is known which these are."""
    if not job.budget.is_mean:
        return
    if job.action not in SPREAD:
        raise UserError(
            f"budget={job.budget.spread}, action={job.action}: which images have the mean is known to action=evaluate "
            "alone; in Python, Model.spread_over says it"
        )
    if job.action == "evaluate" and job.benchmark.name == "mteb":
        raise UserError(
            f"budget={job.budget.spread}, benchmark=mteb: mteb doesn't say beforehand which images it brings; allowed: "
            "budget=each"
        )


def _check_parts(job: Job) -> None:
    """A composition's parts: at most one budget each; and it can't be trained."""
    members = [*parts(job.method.name)]
    if len(members) == 1:
        return
    if job.action == "train":
        raise UserError(
            f"method={job.method.name}: a composition is not trained; train its parts, one by one, with action=train"
        )
    for member in members[:-1]:
        own = job.method.options[member]
        budgets = {key: own[key] for key in ("tokens", "ratio") if own.get(key) is not None}
        for key, value in budgets.items():
            (whole(1) if key == "tokens" else SHARE).check(f"method.{member}.{key}", value)
        if len(budgets) > 1:
            text = ", ".join(f"method.{member}.{key}={value}" for key, value in budgets.items())
            raise UserError(f"{text}: give only one of the two")


def _check_schedule(job: Job, values: Mapping[str, Any]) -> None:
    """Stages only for a method that has them, and said once."""
    stages = (values.get("schedule") or {}).get("stages")
    if stages is None:
        return
    if "scheme" not in job.method.options:
        raise UserError(
            f"schedule={stages}: method={job.method.name} is not trained in stages; allowed with method=llavolta"
        )
    if job.method.options["scheme"] != stages:
        raise UserError(f"schedule={stages}, method.scheme={job.method.options['scheme']}: give one of the two")


def _check_tasks(job: Job) -> None:
    """Task names of the built-in benchmark; those of others are lmms-eval's to know."""
    if not job.benchmark.tasks:
        raise UserError("benchmark.tasks=[]: at least one task is needed")
    if job.benchmark.name in POCKET:
        # The names of the task files: vtc.pocket knows them too, but takes seconds to import.
        known = sorted(f.stem for f in shipped.path("benchmarks/tasks").glob("pocket*_*.yaml"))
        for task in job.benchmark.tasks:
            if task not in known:
                raise unknown("benchmark.tasks", task, known)


def _check_files(job: Job, values: Mapping[str, Any]) -> None:
    if job.checkpoint not in (None, "auto") and not os.path.isdir(os.path.expanduser(job.checkpoint)):
        raise UserError(
            f"checkpoint={job.checkpoint}: no such folder; allowed: auto, null, or a folder that training wrote"
        )
    _check_data(job, values)
    if os.path.exists(job.output_dir) and not os.path.isdir(job.output_dir):
        raise UserError(f"output_dir={values['output_dir']}: is a file, a folder is needed")


def _check_data(job: Job, values: Mapping[str, Any]) -> None:
    benchmark = job.benchmark
    if benchmark.name in OWN_DATA:
        if job.action == "evaluate":
            from vtc.evaluation.sources import user_data

            user_data.check(benchmark)
        return
    if values.get("data") is not None:
        raise UserError(f"data={values['data']}: for benchmark=jsonl or hf; others have benchmark.data")
    if (
        benchmark.data is not None
        and benchmark.name not in POCKET
        and not os.path.exists(os.path.expanduser(benchmark.data))
    ):
        raise UserError(f"benchmark.data={benchmark.data}: no such file or folder")
