"""Training: ``train(job)`` runs the recipe that ``training.recipe`` names, stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vtc.job import Job


def train(job: Job) -> Path:
    """Run ``action=train``.

    Args:
        job: with a recipe in ``job.training``.

    Returns:
        The folder of the finished weights; of a dry run the folder of the training that it speaks of.

    Raises:
        UserError: a recipe, stage or option that doesn't exist, before anything is trained.
    """
    from vtc.training import recipes

    return recipes.run(job)
