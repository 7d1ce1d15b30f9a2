"""FastV (arXiv 2403.06764): an image is worth 1/2 tokens after layer 2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from vtc.interface import Context, TokenPruner, TokenSequence, resolve_layer, two_level

if TYPE_CHECKING:
    from vtc.interface import BackboneShape


class FastV(TokenPruner):
    """Before layer K keeps the visual tokens to which the last prompt token attends most in layer K−1.

    The score of token j is A_j = mean over heads of softmax(q_last · k / √d)_j in layer K−1 (section 4.1). The best
    are kept in raster order with their original positions; one choice, at prefill; the caches of layers K… hold the
    kept tokens only. Exactly `tokens` are kept, where the authors keep round(N·(1−R)).

    Args:
        tokens: default: half of the visual tokens (R = 50 %).
        layer: K = 2 in the paper; 3 in Victor's comparison.
    """

    name = "fastv"

    def __init__(self, tokens: int | None, shape: BackboneShape, layer: int = 2, layer_scale: str = "auto") -> None:
        super().__init__(tokens, shape, resolve_layer(layer, shape.depth, layer_scale, lowest=1))

    def probes(self) -> set[int]:
        return {self.layer - 1}

    def score(self, tokens: TokenSequence, context: Context) -> Tensor:
        return context.attention(self.layer - 1)

    @classmethod
    def default_tokens(cls, shape: BackboneShape, **options: Any) -> int | None:
        return shape.visual_tokens and round(shape.visual_tokens / 2)

    @classmethod
    def layer_tokens(
        cls, tokens: int | None, shape: BackboneShape, layer: int = 2, layer_scale: str = "auto", **options: Any
    ) -> list[int]:
        return two_level(tokens, shape, resolve_layer(layer, shape.depth, layer_scale, lowest=1))
