"""Which function runs which `action`. Each is imported when it is asked for."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from omegaconf import DictConfig

from vtc.budget import in_words
from vtc.errors import UserError

# action → (function that takes the configuration, whether it builds a model and so needs a plan)
ACTIONS = {
    "evaluate": ("vtc.evaluation:evaluate", True),
    "train": ("vtc.training:train", False),
    "ablate": ("vtc.ablations.run:ablate", False),
    "profile": ("vtc.profiling:profile", True),
    "report": ("vtc.report:report", False),
}
TOGETHER = ("evaluate", "train")  # what several processes, started by `accelerate launch` or `torchrun`, do together


def headline(config: DictConfig) -> str:
    """What is about to happen, in one line."""
    if config.action == "report":
        return "report"
    if config.action == "ablate":
        return f"ablate · {(config.get('ablation') or {}).get('name')} · backbone {config.backbone.name}"
    parts = [config.action, f"backbone {config.backbone.name}", f"method {config.method.name}"]
    parts += [budget.replace("=", " ")] if (budget := in_words(config)) else []
    if config.action == "evaluate":
        parts.append(f"benchmark {config.benchmark.name}")
    return " · ".join(parts)


def perform(config: DictConfig) -> Any:
    """Runs the configuration's action and returns what it returns.

    Raises:
        UserError: what the user asked for can't be done; raised before any model loads.
    """
    processes = int(os.environ.get("WORLD_SIZE") or 1)
    if processes > 1 and config.action not in TOGETHER:
        raise UserError(
            f"action={config.action}: is for one process, and {processes} were started; leave out the launcher"
        )
    target, needs_plan = ACTIONS[config.action]
    if needs_plan:
        from vtc.assemble import plan

        plan(config)
    module, function = target.split(":")
    return getattr(import_module(module), function)(config)
