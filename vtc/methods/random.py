"""Random dropping: what any method that looks at the image must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.interface import Context, TokenPruner, TokenSequence, resolve_layer, two_level

if TYPE_CHECKING:
    from vtc.interface import BackboneShape


class RandomDropping(TokenPruner):
    """A uniform random subset of each image's visual tokens, in raster order.

    The draw depends on `seed` and on the image's number of tokens alone, so an image keeps the same places in whatever
    batch, beam
    or order it comes: results don't hang on the batch size.

    Args:
        layer: before which decoder layer (papers' count); 0 = before the LLM.
        seed: of the draw.
    """

    name = "random"

    def __init__(
        self, tokens: int | None, shape: BackboneShape, layer: int = 0, seed: int = 0, layer_scale: str = "auto"
    ) -> None:
        super().__init__(tokens, shape, resolve_layer(layer, shape.depth, layer_scale))
        self.seed = seed

    def score(self, tokens: TokenSequence, context: Context) -> Tensor:
        index, real = tokens.images
        draw = torch.rand(index.shape[1], generator=torch.Generator().manual_seed(self.seed)).to(index.device)
        return tokens.per_token(draw.expand(index.shape))

    @classmethod
    def layer_tokens(
        cls, tokens: int | None, shape: BackboneShape, layer: int = 0, layer_scale: str = "auto", **options: Any
    ) -> list[int]:
        return two_level(tokens, shape, resolve_layer(layer, shape.depth, layer_scale))
