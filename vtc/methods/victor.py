"""Victor (arXiv 2410.14072): visual compact token registers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vtc.compressor import VISUAL, Compressor, Context, TokenSequence, two_level
from vtc.schedule import resolve_layer

if TYPE_CHECKING:
    from vtc.backbones.base import BackboneShape


class Victor(Compressor):
    """M learnable registers stand behind each image's visual tokens; before layer k ALL visual tokens go (algorithm 1).

    x = [x_V; x_R; x_T] runs through layers 0…k−1, which learn to write the image into the registers; [x_R; x_T] through
    layers k…n. Registers are ordinary tokens with positions of their own, right behind the image's; what is left keeps
    its positions. Nothing but next-token prediction trains it: projector and registers first, then the LLM too
    (section 4).

    Args:
        tokens: M, the registers; default 8, the paper's headline.
        layer: k = 3 in the paper.
    """

    name = "victor"
    needs_training = True
    fixed_budget = True
    trained_options = ("layer", "layer_scale")

    def __init__(self, tokens: int | None, shape: BackboneShape, layer: int = 3, layer_scale: str = "auto") -> None:
        m = 8 if tokens is None else tokens
        super().__init__(m, shape)
        self.layer = resolve_layer(layer, shape.depth, layer_scale, lowest=1)
        self.registers = nn.Parameter(torch.randn(m, shape.width) * 0.02)

    def layers(self) -> set[int]:
        return {0, self.layer}

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        if layer == 0:
            return tokens.insert(self.registers, after=VISUAL)
        return tokens.drop(VISUAL)

    @classmethod
    def default_tokens(cls, shape: BackboneShape, **options: Any) -> int | None:
        return 8

    @classmethod
    def layer_tokens(
        cls, tokens: int | None, shape: BackboneShape, layer: int = 3, layer_scale: str = "auto", **options: Any
    ) -> list[int]:
        m = 8 if tokens is None else tokens
        return two_level(m, shape, resolve_layer(layer, shape.depth, layer_scale, lowest=1), extra=m)
