"""Training: ``train(job)`` runs the recipe that ``training.recipe`` names, stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vtc.job import Job


def train(job: Job) -> Path:
    """Run ``action=train``; see `vtc.training.recipes.run`."""
    from vtc.training import recipes

    return recipes.run(job)
