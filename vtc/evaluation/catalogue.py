"""Which tasks there are and what their YAML says, without importing lmms-eval (8 s) or indexing all of it (6 s)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from vtc import shipped

NAME = re.compile(r"""^(?P<key>task|group|tag)[ ]*:[ ]*["']?(?P<name>[^\s"'#\[]+)["']?[ ]*(?:\#.*)?$""", re.MULTILINE)

INCLUDE = re.compile(r"^include:[ ]*(?P<file>\S+)[ ]*$", re.MULTILINE)


class _Loader(yaml.SafeLoader):
    """Reads `!function utils.score` as the string `utils.score`: nothing is imported."""


_Loader.add_multi_constructor("!", lambda loader, _, node: loader.construct_scalar(node))


def upstream() -> Path:
    """The folder of lmms-eval's own tasks."""
    spec = find_spec("lmms_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("lmms_eval is not installed")
    return Path(next(iter(spec.submodule_search_locations))) / "tasks"


def files(include: Sequence[str | Path] = ()) -> dict[str, Path]:
    """Task or group → its YAML file: the shipped ones and those of `include` before lmms-eval's of the same name."""
    known = dict(_names(upstream()))
    for folder in (shipped.path("benchmarks/tasks"), *(Path(p).expanduser() for p in include)):
        known.update(_scan(folder))
    return known


@lru_cache(maxsize=4)
def _names(folder: Path) -> Mapping[str, Path]:
    return _scan(folder)


def _scan(folder: Path) -> dict[str, Path]:
    """The names that a folder's YAML files begin a line with: 0.4 s for all of lmms-eval's."""
    files: dict[str, Path] = {}
    unnamed: list[tuple[Path, Path]] = []
    for file in sorted(folder.rglob("*.yaml")):
        text = file.read_text(encoding="utf-8", errors="replace")
        keys = {m["key"]: m["name"] for m in NAME.finditer(text)}
        name = keys.get("task") or keys.get("group")  # a group's `task` is a list, and matches nothing
        if name:
            files[name] = file
        elif (included := INCLUDE.search(text)) and (template := file.parent / included["file"]).is_file():
            unnamed.append((file, template))
    for file, template in unnamed:  # V*Bench's own name stands in what its file includes
        named = {m["key"]: m["name"] for m in NAME.finditer(_text(template))}
        if "task" in named:
            files.setdefault(named["task"], file)
    return files


@lru_cache(maxsize=64)
def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


@lru_cache(maxsize=64)
def settings(file: Path) -> dict[str, Any]:
    """A task's YAML with what it includes; functions are their names."""
    own = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader) or {}
    include = own.pop("include", None)
    if include is None:
        return own
    parents = [include] if isinstance(include, str) else include
    merged: dict[str, Any] = {}
    for parent in parents:
        merged |= settings((file.parent / parent).resolve())
    return merged | own


def members(name: str, known: Mapping[str, Path]) -> list[str]:
    """The tasks of a group, groups in it opened; of a task itself."""
    if name not in known:
        return []
    inside = settings(known[name]).get("task")
    if not isinstance(inside, list):
        return [name]
    named = [m if isinstance(m, str) else str(m.get("task") or m.get("group")) for m in inside]
    return list(dict.fromkeys(task for member in named for task in members(member, known)))


def metadata(content: Mapping[str, Any]) -> dict[str, Any]:
    """The `metadata` of a task's content, where vtc's own files state its group and its version."""
    value = content.get("metadata")
    return value if isinstance(value, dict) else {}


def near(task: str, allowed: Iterable[str]) -> list[str]:
    """The names worth listing in an error: two thousand are not."""
    allowed = sorted(set(allowed))
    close = difflib.get_close_matches(task, allowed, n=5, cutoff=0.4)
    return close or members("pocket", files())
