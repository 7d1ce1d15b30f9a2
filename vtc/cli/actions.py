"""Which function runs which `action`. Each is imported when it is asked for."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from vtc import folders as places
from vtc import registry, shipped
from vtc.cli import refusals
from vtc.errors import UserError
from vtc.job import Job, launched
from vtc.settings import SIDE_BY_SIDE
from vtc.settings.store import JSON

# action → (function that takes the job, whether it loads a trained model and so is checked before)
ACTIONS = {
    "evaluate": ("vtc.evaluation:evaluate", True),
    "train": ("vtc.training:train", False),
    "ablate": ("vtc.ablations.run:ablate", False),
    "profile": ("vtc.evaluation:profile", True),
    "report": ("vtc.report:report", False),
    "compare": ("vtc.report:compare", False),
    "visualize": ("vtc.visualize:visualize", False),  # it checks each method that it draws
    "demo": ("vtc.demo:demo", False),
    "tune": ("vtc.tune:tune", False),  # each of its runs is checked
    "calibrate": ("vtc.calibrate:calibrate", False),  # what it needs of the job it checks itself
    "check": ("vtc.testing.check:check", False),
    "new_method": ("vtc.authoring:new_method", False),
    "index": ("vtc.store.actions:index", False),  # these load the model of the store
    "search": ("vtc.store.actions:search", False),
    "ask": ("vtc.store.actions:ask", False),
}
WITHOUT_RESULTS = ("check", "demo", "new_method")
TOGETHER = ("evaluate", "train")  # what several processes, started by `accelerate launch` or `torchrun`, do together


def headline(job: Job) -> str:
    """What is about to happen, in one line; nothing where what is printed is to be read by a program."""
    if job.store is not None:
        return "" if job.store.format == JSON else f"{job.action} · store {job.store.store}"
    if job.action in ("report", "compare", "new_method"):
        return job.action
    if job.action in SIDE_BY_SIDE:
        return f"{job.action} · backbone {job.backbone.name}"
    if job.action == "tune":
        return f"tune · backbone {job.backbone.name} · benchmark {job.benchmark.name}"
    if job.action == "ablate":
        return f"ablate · {job.ablation.name if job.ablation else None} · backbone {job.backbone.name}"
    words = [job.action, f"backbone {job.backbone.name}", f"method {job.method.name}"]
    words += [budget.replace("=", " ")] if (budget := job.budget_in_words) else []
    if job.action == "evaluate":
        words.append(f"benchmark {job.benchmark.name}")
    return " · ".join(words)


def is_first() -> bool:
    """Whether this process is the one that talks: of several that `accelerate launch` or `torchrun` started, rank 0."""
    return os.environ.get("RANK", "0") == "0"


def _check_folders(job: Job) -> None:
    """Refuses folders that can't be written, of results and of caches.

    Raises:
        UserError: as `places.check_writable`.
    """
    pages = {"report": job.report.output, "compare": job.compare.output, "visualize": job.visualize.output}
    if output := pages.get(job.action):
        folder = Path(os.path.expanduser(output)).absolute()
        places.check_writable(folder, f"give {job.action}.output=<another folder>")
    elif job.store is not None:
        if job.action == "index" and "://" not in job.store.store:
            store = Path(os.path.expanduser(job.store.store)).absolute()
            places.check_writable(store, "give store=<another folder>")
    else:
        places.check_writable(job.output_dir.absolute(), "give output_dir=<another folder>")
    if job.action in ("evaluate", "train", "ablate"):
        places.check_writable(shipped.cache_folder().absolute(), "set VTC_CACHE=<a folder for what is made once>")
    if job.action == "evaluate":
        home = os.environ.get("HF_HOME") or os.path.join(shipped.user_cache(), "huggingface")
        datasets = os.path.expanduser(os.environ.get("HF_DATASETS_CACHE") or os.path.join(home, "datasets"))
        places.check_writable(Path(datasets).absolute(), "set HF_HOME=<a folder for data sets>")


def perform(job: Job) -> Any:
    """Runs the job's action and returns what it returns.

    Raises:
        UserError: what the user asked for can't be done; raised before any model loads.
    """
    if launched() > 1 and job.action not in TOGETHER:
        raise UserError(
            f"action={job.action}: is for one process, and {launched()} were started; leave out the launcher"
        )
    registry.check_packages()
    if is_first() and job.action not in WITHOUT_RESULTS:
        _check_folders(job)
    if job.action != "evaluate" and (kept := sys.modules.get("vtc.evaluation.loaded")) is not None:
        kept.let_go()  # of what a sweep's evaluations keep: the memory is this one's
    target, loads = ACTIONS[job.action]
    if loads or job.action == "train":
        refusals.check(job, trained=loads)
    if loads:
        job.check()
    module, function = target.split(":")
    return getattr(import_module(module), function)(job)
