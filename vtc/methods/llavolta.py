"""LLaVolta (arXiv 2406.20092): efficient multi-modal models via stage-wise visual context compression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from vtc.identity import WEIGHTS
from vtc.interface import Context, TokenMerger, TokenSequence, layer_option, option, resolve_layer
from vtc.methods.avgpool import raster_groups
from vtc.methods.stages import CompressionStage, parse_stages, stage_at


class LLaVolta(TokenMerger):
    """The visual context compressor (section 3.2): 1-D average pooling of the visual hidden states before layer K.

    In training (`.train()` and `set_stage`) the stage of the scheme says K and the stride S (table 1): heavy
    compression first, none at the end. N tokens become ceil(N / S); the authors' code loses the N mod S last ones. A
    pooled token takes the mean of its members' positions.

    At evaluation (`.eval()`) a trained model runs as in its last stage, without compression; `tokens` asks for
    test-time pooling instead (figure 1), to exactly that many tokens, before layer `layer`.

    Args:
        tokens: None at evaluation: no compression.
    """

    name = "llavolta"
    about = "LLaVolta: 1-D average pooling inside the decoder, trained in stages (arXiv 2406.20092)."
    reference = "test_pooling.py::test_training_stages_pool_with_their_stride_before_their_layer"
    layer: int = layer_option(2, "of pooling at test time: before this decoder layer")
    scheme: str | Sequence[Any] = option(
        "four_wider_then_deeper",
        "stages in training (table 1): schedule=…, or a name or a list of {layer, stride, share} here",
        follows="schedule.stages",
        decides=WEIGHTS,
    )

    def prepare(self) -> None:
        # A named scheme's layers are the papers' in any case.
        scale = "auto" if isinstance(self.scheme, str) else self.layer_scale
        self.stages = [self._resolved(stage, scale) for stage in parse_stages(self.scheme)]
        self.stage: CompressionStage | None = None

    def _resolved(self, stage: CompressionStage, scale: str) -> CompressionStage:
        if stage.layer is None:
            return stage
        return replace(stage, layer=resolve_layer(stage.layer, self.shape.depth, scale, key="schedule.layer"))

    def set_stage(self, step: int, total: int) -> None:
        self.stage = stage_at(self.stages, step, total)

    def layers(self) -> set[int]:
        if self.training and self.stage is not None:
            return set() if self.stage.layer is None or not self.stage.compresses else {self.stage.layer}
        return set() if self.tokens is None else {self.layer}

    def assign(self, tokens: TokenSequence, context: Context) -> tuple[Tensor, None]:
        _, real = tokens.images
        if self.training and self.stage is not None and self.stage.stride:
            return (real.cumsum(1) - 1) // self.stage.stride, None
        return raster_groups(real, self.tokens or real.shape[1]), None
