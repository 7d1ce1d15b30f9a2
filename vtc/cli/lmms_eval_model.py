"""The model that lmms-eval's own command loads: `lmms-eval --model vtc --model_args method=fwd2bot,tokens=16,…`."""

from __future__ import annotations

import logging
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance

from vtc.configuration import parse
from vtc.errors import UserError
from vtc.evaluation import harness, scorer
from vtc.evaluation.model import FRAMES, VtcModel
from vtc.job import launched

log = logging.getLogger(__name__)


class RegisteredModel(VtcModel):
    """Every argument is an override of vtc's configuration (`backbone=llava15_7b`, `method.layer=3`,
    `backbone.dtype=bfloat16`). Of several processes each loads it onto a GPU of its own; lmms-eval splits the samples
    among them."""

    def __init__(
        self,
        batch_size: int | str | None = None,
        device: str | None = None,
        max_batch_size: int | None = None,
        **overrides: Any,
    ) -> None:
        if device is not None:
            overrides.setdefault("backbone.device", device)
        job = parse([f"{key}={_word(value)}" for key, value in overrides.items()])
        scorer.check_processes(job)
        job.check()
        if job.budget.is_mean and (count := launched()) > 1:
            raise UserError(
                f"budget={job.budget.spread}: {count} processes were started, and lmms-eval shows each a part of a "
                "task; start one, or python -m vtc under the launcher"
            )
        backbone, method = scorer.load(job)
        given = batch_size is not None and str(batch_size).isdigit()
        rows = int(str(batch_size)) if given else job.batch_size
        words = ", ".join(f"{key}={value}" for key, value in sorted(overrides.items()))
        frames = job.backbone.frames or FRAMES
        about, spreads = f"{words}, checkpoint={job.checkpoint}", job.budget.is_mean
        super().__init__(backbone, method, rows, about, frames, workers=job.workers, spreads=spreads)
        harness.quiet_logging()

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """As the base class's; bad samples are named in the log, as there is no result file of vtc's to name them."""
        before = len(self.bad)
        answers = super().generate_until(requests)
        for bad in self.bad[before:]:
            log.warning("%s: sample %s set aside and not scored: %s", bad.task, bad.id, bad.error)
        return answers


def _word(value: Any) -> str:
    """A value of `--model_args` as Hydra writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
