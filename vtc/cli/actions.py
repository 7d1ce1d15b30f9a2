"""Which function runs which `action`. Each is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from vtc.errors import UserError
from vtc.job import Job, launched

# action → (function that takes the job, whether it loads a trained model and so is checked before)
ACTIONS = {
    "evaluate": ("vtc.evaluation:evaluate", True),
    "train": ("vtc.training:train", False),
    "ablate": ("vtc.ablations.run:ablate", False),
    "profile": ("vtc.evaluation:profile", True),
    "report": ("vtc.report:report", False),
}
TOGETHER = ("evaluate", "train")  # what several processes, started by `accelerate launch` or `torchrun`, do together


def headline(job: Job) -> str:
    """What is about to happen, in one line."""
    if job.action == "report":
        return "report"
    if job.action == "ablate":
        return f"ablate · {job.ablation.name if job.ablation else None} · backbone {job.backbone.name}"
    words = [job.action, f"backbone {job.backbone.name}", f"method {job.method.name}"]
    words += [budget.replace("=", " ")] if (budget := job.budget_in_words) else []
    if job.action == "evaluate":
        words.append(f"benchmark {job.benchmark.name}")
    return " · ".join(words)


def perform(job: Job) -> Any:
    """Runs the job's action and returns what it returns.

    Raises:
        UserError: what the user asked for can't be done; raised before any model loads.
    """
    if launched() > 1 and job.action not in TOGETHER:
        raise UserError(
            f"action={job.action}: is for one process, and {launched()} were started; leave out the launcher"
        )
    target, loads = ACTIONS[job.action]
    if loads:
        job.check()
    module, function = target.split(":")
    return getattr(import_module(module), function)(job)
