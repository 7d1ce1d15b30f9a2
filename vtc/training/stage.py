"""What is trained: a stage says which parameters learn, from which batches, by which losses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtc.data.training.batch import Part


class Stage:
    """One stage of training: which parameters, which data, which losses.

    A batch must be a function of the step and the part alone, so that a run which was killed and resumed ends bit for
    bit where the run that was never killed does, and one on several processes where one on a single process does.
    """

    name: str
    device = torch.device("cpu")
    batch_size: int | None = None  # rows of the global batch, where it is known: there must be one for every part

    def to(self, device: torch.device) -> None:
        """Work there from now on. Stages with modules of their own move them."""
        self.device = device

    def modules(self) -> dict[str, nn.Module]:
        """Everything that runs in `losses`, trained or not; wrapped together for several processes.

        Stages that train one loose set of parameters need not say more than `named_parameters`.
        """
        return {"trained": nn.ParameterList(p for _, p in self.named_parameters())}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What is trained; names are the keys in the checkpoint."""
        raise NotImplementedError

    def start_step(self, step: int, total: int) -> None:
        """Called before each step; schedules live here."""

    def expect(self, parts: Sequence[Part], first: int, last: int) -> None:
        """Called once: `batch` will be called for these parts, in this order, in each of the steps first … last-1.
        Prefetching begins here."""

    def batch(self, step: int, part: Part) -> Any:
        """A part of the global batch, on the CPU: what `vtc.data.training.batch.on_device` moves."""
        raise NotImplementedError

    def weights(self, batch: Any) -> dict[str, float]:
        """What a part counts in the mean over the step's parts, for each term: answer tokens, say.

        Terms without a weight count 1 a part. A term of weight 0 in a part is left out there; it may be returned all
        the same, finite: sharded models need the same forward pass on every process.
        """
        return {}

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Named terms, means over the part. The weighted mean over the parts of each is added up and minimised."""
        raise NotImplementedError

    def validate(self) -> dict[str, float]:
        """Figures for the log, from the validation split."""
        return {}

    def images(self, batch: Any) -> int:
        """Images in a batch, for the speed in the log."""
        return 0

    def tokens(self, batch: Any) -> int:
        """Tokens in a batch, for the speed in the log."""
        return 0
