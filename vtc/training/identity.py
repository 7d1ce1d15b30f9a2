"""Which training is the same: what decides the weights that it ends with, and the folder that is named after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vtc import distributed, results
from vtc.budget import Budget
from vtc.data.training.source import files_of
from vtc.errors import UserError
from vtc.identity import WEIGHTS, digest
from vtc.job import Job
from vtc.methods import options_of
from vtc.methods.stages import parse_stages
from vtc.settings import MethodSettings, TrainingSettings


def identity(job: Job) -> dict[str, Any]:
    """What decides the weights that the training of a job ends with; what can be said in several ways is said in one.

    An option that isn't set is at its default, a scheme is its stages, and a budget is the number of visual tokens that
    it comes to: `ratio=0.25` of pocket's 144 is `tokens=36`. Weights for every budget have none.
    """
    with torch.device("meta"):  # Nothing is drawn and nothing allocated: it is about budgets.
        method = dataclasses.replace(job).compressor
    options = options_of(job.method.name) | dict(job.method.options)
    if "scheme" in options:
        options["scheme"] = [(s.layer, s.stride, round(s.share or 0, 6)) for s in parse_stages(options["scheme"])]
    budget = Budget(tokens=None if method.elastic else method.tokens)
    chosen = MethodSettings(job.method.name, options)
    training = recipe(job)
    decided = dataclasses.replace(job, method=chosen, budget=budget, training=training).deciding(WEIGHTS)
    return decided | ({"contents": known} if (known := contents(training)) else {})


def contents(training: TrainingSettings) -> list[str | None]:
    """Hashes of what a training reads by its name: files of data, and folders of weights that it starts from.

    A folder that another training will have made, and pictures, which their files name, count by name alone.

    Raises:
        UserError: a file of data that isn't there, or can't be read.
    """
    stages = [training.data, *map(training.data_of, training.stages)]
    files = results.hash_files(file for data in stages for file in files_of(data))
    starts = [folder for folder in (training.start, training.pretrained) if folder and Path(folder).is_dir()]
    return [*files.values(), *(results.hash_weights([folder]) for folder in starts)]


def training_id(job: Job) -> str:
    """Eight hex digits that name a training: of the same backbone, method, budget, data, stages and seed, the same."""
    return digest(identity(job))[:8]


def training_folder(job: Job, name: str | None = None) -> Path:
    """Where a training keeps its states, logs and weights: `training.folder`, else a folder of its own by its id.

    Args:
        name: what it begins with; None: backbone, method and tokens.
    """
    if recipe(job).folder:
        return Path(str(recipe(job).folder))
    if name is None:
        budget = "" if job.budget.tokens is None else f"-{job.budget.tokens}"
        name = f"{job.backbone.name}-{job.method.name}{budget}"
    return job.output_dir / "training" / f"{name}-{training_id(job)}"


def recipe(job: Job) -> TrainingSettings:
    """The recipe of a job that trains, with `bf16: auto` settled for the processor that it trains on."""
    if job.training is None:
        raise UserError(f"action={job.action}: there is no recipe to train by; needed: action=train")
    auto = not is_slow_in_bf16(distributed.device(job.backbone.device).type)
    stages = (dataclasses.replace(s, bf16=auto if s.bf16 == "auto" else s.bf16) for s in job.training.stages)
    return dataclasses.replace(job.training, stages=tuple(stages))


def is_slow_in_bf16(device: str) -> bool:
    """Whether a device computes in bfloat16 many times slower than in float32: processors without instructions for it.

    On an AVX2 machine a product of matrices took 35 times as long.
    """
    return device == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"


def identity_of_manifest(manifest: Mapping[str, Any], job: Job) -> dict[str, Any] | None:
    """What decided weights that are there, by their manifest, on the backbone of a job; None where that isn't theirs.

    Args:
        manifest: of a finished training: backbone, method, tokens, options, training, seed; what it read, `contents`;
            of what it was computed by, `components`, version 1 where it says nothing.

    Raises:
        KeyError, UserError: it is of another version of vtc, or of no method.
    """
    if manifest["backbone"] != job.backbone.name:
        return None
    training = TrainingSettings.of(manifest["training"])
    options = {key: value for key, value in (manifest["options"] or {}).items() if key != "name"}
    earlier = dataclasses.replace(
        job,
        method=MethodSettings(manifest["method"], options),
        budget=Budget(tokens=manifest["tokens"]),
        training=training,
        seed=manifest["seed"],
    )
    decided = identity(earlier)
    decided.pop("contents", None)  # as they are now
    known = {"contents": manifest["contents"]} if manifest.get("contents") else {}
    return decided | known | {"versions": manifest.get("components") or _first(decided["versions"])}


def _first(versions: Mapping[str, Any]) -> dict[str, Any]:
    """The first version of each component."""
    return {key: _first(value) if isinstance(value, Mapping) else 1 for key, value in versions.items()}
