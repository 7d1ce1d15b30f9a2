"""M3 (arXiv 2405.17430): matryoshka multimodal models."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vtc.errors import UserError
from vtc.methods.avgpool import AveragePooling

if TYPE_CHECKING:
    from vtc.interface import BackboneShape


def nested_scales(shape: BackboneShape) -> list[int]:
    """Tokens of every grid that k×k cells make of the backbone's: 576, 144, 64, 36, 16, 9, 4, 1 of 24×24.

    Raises:
        UserError: the backbone has no grid of its own.
    """
    if shape.grid is None:
        raise UserError(f"method=m3: {shape.name} has no fixed grid of visual tokens, and so no scales")
    height, width = shape.grid
    sides = [k for k in range(1, min(shape.grid) + 1) if height % k == 0 and width % k == 0]
    return sorted((height // k) * (width // k) for k in sides)


class M3(AveragePooling):
    """One model reads an image at several granularities: X_S1 … X_SM, 2-D average pools of the projected visual tokens.

    X_Si is pooled from X_Si+1 (section 3.1): means of means over equal cells, so the mean of the finest tokens in each
    k×k cell. They replace the image before the LLM. Nothing is added to the backbone: training changes the backbone
    alone, so that it answers from every scale, by next-token prediction averaged over the scales of EACH sample
    (eq. 2):

        L = 1/M Σ_i CE(X_a | X_Si, X_q)

    and one checkpoint serves every budget among the scales.

    The paper leaves open, and here it is so: the scales are all grids of square cells that tile the backbone's (the
    paper halves 24×24 down to 3×3, then takes one mean; see `scales`). A grid that isn't square keeps its aspect (12×8:
    96, 24, 6). Cells that don't tile it, and images of a size of their own, have no scales.

    Args:
        tokens: of one scale; None: the finest, nothing is pooled.
        scales: those that are trained and offered; None: all. The paper's: [1, 9, 36, 144, 576].
        scales_per_step: how many of them, drawn without repetition, a step of training is about. None: all, as in the
            paper, which costs a pass of the model for each. A few have the same gradient in the mean.
    """

    name = "m3"
    needs_training = True
    elastic = True
    trained_options = ("scales",)

    def __init__(
        self,
        tokens: int | None,
        shape: BackboneShape,
        scales: Sequence[int] | None = None,
        scales_per_step: int | None = None,
    ) -> None:
        super().__init__(tokens, shape)
        self.scales = self.offers(shape, scales=scales)
        if scales_per_step is not None and not 1 <= scales_per_step <= len(self.scales):
            raise UserError(f"method.scales_per_step={scales_per_step}: allowed: 1 to {len(self.scales)}, or null")
        self.per_step = scales_per_step

    def training_budgets(self, generator: random.Random) -> Sequence[int]:
        return self.scales if self.per_step is None else generator.sample(self.scales, self.per_step)

    @classmethod
    def offers(
        cls, shape: BackboneShape, dims: int = 2, scales: Sequence[int] | None = None, **options: Any
    ) -> list[int]:
        there = nested_scales(shape)
        odd = sorted(set(scales or ()) - set(there))
        if odd or (scales is not None and not scales):
            raise UserError(f"method.scales={list(scales or ())}: allowed: some of {', '.join(map(str, there))}")
        return there if scales is None else sorted(set(scales))
