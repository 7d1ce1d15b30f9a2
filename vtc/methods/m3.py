"""M3 (arXiv 2405.17430): matryoshka multimodal models."""

from __future__ import annotations

import random
from collections.abc import Sequence

from vtc.errors import UserError
from vtc.identity import WEIGHTS
from vtc.interface import BackboneShape, option
from vtc.methods.avgpool import AveragePooling


def offered_scales(scales: Sequence[int] | None, shape: BackboneShape) -> list[int]:
    """The scales that a user names; None: all, the tokens of each grid that k×k cells make of the backbone's: 576, 144,
    64, 36, 16, 9, 4, 1 of 24×24.

    Raises:
        UserError: none, one that the backbone doesn't have, or a backbone without a grid of its own.
    """
    if shape.grid is None:
        raise UserError(f"method=m3: {shape.name} has no fixed grid of visual tokens, and so no scales")
    height, width = shape.grid
    sides = [k for k in range(1, min(shape.grid) + 1) if height % k == 0 and width % k == 0]
    there = sorted((height // k) * (width // k) for k in sides)
    odd = sorted(set(scales or ()) - set(there))
    if odd or (scales is not None and not scales):
        raise UserError(f"method.scales={list(scales or ())}: allowed: some of {', '.join(map(str, there))}")
    return there if scales is None else sorted(set(scales))


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

    A few scales a step have the same gradient in the mean as all of them, which cost a pass of the model each.

    Args:
        tokens: of one scale; None: the finest, nothing is pooled.
    """

    name = "m3"
    about = "M3: nested 2-D grids of pooled visual tokens, one checkpoint for all of them (arXiv 2405.17430)."
    reference = "test_m3.py::test_answers_from_the_means_of_square_cells"
    needs_training = True
    elastic = True
    trained_options = ("scales",)
    layer = 0  # This and `dims` are no options here.
    dims = 2
    scales: list[int] = option(
        None,
        "trained and offered; null: every grid of square cells (the paper, on 24x24: [1,9,36,144,576])",
        resolve=offered_scales,
    )
    scales_per_step: int | None = option(
        None,
        "how many of them a training step draws; null: all, as in the paper, a pass of the model each",
        decides=WEIGHTS,
    )

    def prepare(self) -> None:
        super().prepare()
        if self.scales_per_step is not None and not 1 <= self.scales_per_step <= len(self.scales):
            raise UserError(f"method.scales_per_step={self.scales_per_step}: allowed: 1 to {len(self.scales)}, or null")

    def training_budgets(self, generator: random.Random) -> Sequence[int]:
        return self.scales if self.scales_per_step is None else generator.sample(self.scales, self.scales_per_step)

    def offers(self) -> Sequence[int]:
        return self.scales
