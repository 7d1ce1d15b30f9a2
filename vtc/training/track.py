"""TensorBoard, Weights & Biases, trackio beside ``log.jsonl``: through accelerate's trackers, by the main process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator


class Tracker:
    """Where figures go besides ``log.jsonl``; the main process's alone. Nowhere if there are no names.

    Args:
        accelerator: made with ``log_with=names`` and the stage's folder as its project.
        config: of the stage, shown beside its figures.

    Raises:
        UserError: a tracker that can't begin (no account, say).
    """

    def __init__(self, accelerator: Accelerator, names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> None:
        self.accelerator, self.names = accelerator, names
        if names:
            run = f"{folder.parent.name}/{folder.name}"
            options = {"wandb": {"name": run, "dir": str(folder)}, "trackio": {"name": run}}
            plain = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in config.items()}
            try:
                accelerator.init_trackers("vtc", plain, {k: v for k, v in options.items() if k in names})
            except Exception as error:  # each service has errors of its own
                raise UserError(f"training.log={','.join(names)}: {' '.join(str(error).split())}") from error

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Figures after `step` steps."""
        if self.names:
            self.accelerator.log(dict(values), step=step)

    def finish(self) -> None:
        """Everything is written."""
        for tracker in self.accelerator.trackers if self.names else ():
            tracker.finish()
