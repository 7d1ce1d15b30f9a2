"""TensorBoard, Weights & Biases and trackio: what may follow trainings and evaluations, each a package of its own."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from vtc.errors import UserError, unknown

TRACKERS = ("tensorboard", "wandb", "trackio")  # each is the name of its package


def check(names: Sequence[str], key: str) -> None:
    """Refuses a tracker that doesn't exist or isn't installed; before anything begins.

    Args:
        key: the setting that names them.

    Raises:
        UserError: in a line that says how to get it.
    """
    if isinstance(names, str):
        raise UserError(f"{key}={names}: a list, e.g. {key}=[{names}]")
    for name in names:
        if name not in TRACKERS:
            raise unknown(key, name, TRACKERS)
        if find_spec(name) is None:
            raise UserError(f"{key}={name}: the package is not installed; pip install {name}")
