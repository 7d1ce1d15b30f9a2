"""What a store was made with, kept with it: enough to load the same model again, and to refuse another."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from vtc import results
from vtc.budget import BUDGETS
from vtc.configuration import parse
from vtc.configuration.overrides import SHORT
from vtc.errors import UserError
from vtc.identity import SCORES, digest, flat
from vtc.job import Job

VERSION = 1  # raised when a row means something else
MACHINE = ("device", "device_map", "attention")  # where and how fast the same numbers are computed
SAID = {"backbone", "method", "checkpoint", "layer_scale", "schedule", "seed", "plugins", *BUDGETS, *SHORT}
WORDS = SAID - {*MACHINE}  # keys that say which model compresses
PATHS = ("checkpoint", "pretrained", "backbone.pretrained")
WEIGHTS = ("backbone weights", "checkpoint")


def head(word: str) -> str:
    return word.lstrip("+").split("=")[0].split(".")[0]


def model_words(words: Sequence[str]) -> list[str]:
    """Those of a command line that say which model compresses; folders as whole paths."""
    chosen = []
    for word in words:
        key, _, value = word.partition("=")
        if head(word) in WORDS and key.removeprefix("backbone.") not in MACHINE:
            folder = os.path.abspath(os.path.expanduser(value.strip("'\"")))
            chosen.append(f"{key}='{folder}'" if key in PATHS and os.path.isdir(folder) else word)
    return chosen


def machine_words(words: Sequence[str]) -> list[str]:
    return [word for word in words if word.partition("=")[0].removeprefix("backbone.") in MACHINE]


def about(job: Job, words: Sequence[str], precision: str) -> dict[str, Any]:
    """What is kept with a store that `job` makes: the words that say it, and what identifies it."""
    return {"version": VERSION, "words": model_words(words), "precision": precision, "made_with": made_with(job)}


def made_with(job: Job) -> dict[str, Any]:
    """What decides the tokens and the embeddings of a store, by name."""
    decided = job.deciding(SCORES)
    backbone = {key: value for key, value in decided["backbone"].items() if key not in MACHINE}
    return {
        "backbone": backbone,
        "method": {"name": job.method.name, **job.method.options},
        "tokens": job.compressor.tokens,
        WEIGHTS[0]: results.hash_weights([job.backbone.source]),
        WEIGHTS[1]: None if job.weights is None else results.hash_weights([job.weights]),
        "versions": decided["versions"],
    }


def job_of(where: str, kept: Mapping[str, Any], words: Sequence[str] = ()) -> Job:
    """The job of a store's model, which is the one that it was made with.

    Args:
        kept: see `about`.
        words: as typed; those that say a model must say the same one.

    Raises:
        UserError: another model, or one whose weights, checkpoint or code have changed.
    """
    if kept.get("version") != VERSION:
        raise UserError(f"store={where}: of version {kept.get('version')}, this vtc reads {VERSION}; index it anew")
    typed = model_words(words)
    job = parse([*(typed or kept["words"]), *machine_words(words)])
    check_same(where, kept["made_with"], made_with(job))
    return job


def check_same(where: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises `UserError` by the first thing in which two models differ."""
    if digest(before) == digest(now):
        return
    old, new = dict(flat(before)), dict(flat(now))
    for key in dict.fromkeys([*new, *old]):
        if digest(old.get(key)) == digest(new.get(key)):
            continue
        if key in WEIGHTS:
            raise UserError(f"store={where}: the {key} changed since it was made; index the pictures into a new store")
        if key.startswith("versions."):
            part = key.removeprefix("versions.")
            raise UserError(
                f"store={where}: made by version {old.get(key)} of {part}, this is {new.get(key)}; "
                "index the pictures into a new store"
            )
        raise UserError(f"store={where}: was made with {key}={_shown(old.get(key))}, not {key}={_shown(new.get(key))}")


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
