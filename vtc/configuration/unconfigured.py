"""The configuration of what has a class and no file in `conf/`: methods, sources of tasks, families of plug-ins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from vtc.configuration.methods import method_node
from vtc.registry import sources
from vtc.settings import BackboneSettings


def family_node(name: str) -> dict[str, Any]:
    """The settings of a plug-in's family, which has no checkpoint in `conf/backbone`: its name, and the defaults."""
    return dataclasses.asdict(BackboneSettings(name=name, family=name))


def benchmark_node(name: str) -> dict[str, Any]:
    """The settings of a source of tasks, its tasks among them."""
    tasks = [*sources.get(name).tasks] or [name]
    unset = dict.fromkeys(("limit", "data", "metric", "prompt"))
    return {"name": name, "tasks": tasks, **unset, "include": [], "about": {}}


NODES: dict[str, Callable[[str], dict[str, Any]]] = {
    "method": method_node,
    "backbone": family_node,
    "benchmark": benchmark_node,
}
