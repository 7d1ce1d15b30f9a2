"""Training: ``train(cfg)`` runs the recipe that ``conf/training`` names, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def train(cfg: Mapping[str, Any]) -> Path:
    """Run ``action=train``.

    Args:
        cfg: the resolved configuration; ``cfg.training.recipe`` is ``base`` (the pocket model, from nothing) or
            ``method`` (a compression method on a backbone).

    Returns:
        The folder of the finished weights.

    Raises:
        UserError: a recipe, stage or option that doesn't exist, before anything is trained.
    """
    from vtc.training import recipes

    return recipes.run(cfg)
