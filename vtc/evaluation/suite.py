"""What a suite says of its tasks: `benchmark.about` of the configuration.

    about:
      mme: {paper: MME, metric: mme_perception_score, scale: 2000, data: lmms-lab-encoder/MME, licence: …}

A suite of one's own says the same in the same words (docs/evaluate.md). What it leaves out of a task that a shipped
suite has is taken from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from vtc import shipped
from vtc.errors import UserError, nearest
from vtc.evaluation.spec import About
from vtc.settings import SECTION, from_mapping

NEEDS = ("java", "judge", "folder", "video", "spacy", "web")
KEYS = tuple(f.name for f in fields(About))


def about(entries: Mapping[str, Mapping[str, Any]], task: str) -> About:
    """What is said of a task in `benchmark.about`; what is left out there, as a shipped suite has it, or the list of
    upstream's traps.

    Raises:
        UserError: a key or a value that it can't have.
    """
    own = entries.get(task) or {}
    SECTION.check(f"benchmark.about.{task}", own)
    return _entry(task, {**(_shipped().get(task) or {}), **own})


def _entry(task: str, entry: Mapping[str, Any]) -> About:
    where = f"benchmark.about.{task}"
    for key in entry:
        if key not in KEYS:
            raise UserError(f"{where}.{key}: unknown; allowed: {', '.join(KEYS)}{nearest(str(key), KEYS)}")
    lists = {key: entry.get(key) or () for key in ("requires", "files")}
    known = from_mapping(About, {**entry, **lists}, where)
    for need in known.requires:
        if need not in NEEDS:
            raise UserError(f"{where}.requires: {need}: unknown; allowed: {', '.join(NEEDS)}{nearest(need, NEEDS)}")
    return replace(known, requires=tuple(known.requires), files=tuple(known.files), scale=float(known.scale))


@lru_cache(maxsize=1)
def _shipped() -> dict[str, dict[str, Any]]:
    known: dict[str, dict[str, Any]] = {}
    for entries in [*(suite["about"] for suite in suites().values()), traps()]:
        known = {**entries, **known}
    return known


def traps() -> dict[str, dict[str, Any]]:
    """Tasks of lmms-eval that are in no suite, because something that a suite has does the same without a trap."""
    return yaml.safe_load(shipped.path("benchmarks/tasks/_traps").read_text(encoding="utf-8"))


def suites() -> dict[str, dict[str, Any]]:
    """The shipped suites by name, as their files say, those without `about` left out."""
    contents = {file.stem: read(file) for file in sorted((shipped.path("conf") / "benchmark").glob("*.yaml"))}
    return {name: content for name, content in contents.items() if content}


def read(file: Path) -> dict[str, Any] | None:
    """A suite's file; None where it is none."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) and isinstance(content.get("about"), dict) else None
