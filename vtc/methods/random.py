"""Random dropping: what any method that looks at the image must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.interface import Context, TokenPruner, TokenSequence, layer_option, option


class RandomDropping(TokenPruner):
    """A uniform random subset of each image's visual tokens, in raster order.

    The draw depends on `seed` and on the image's number of tokens alone, so an image keeps the same places in whatever
    batch, beam or order it comes: results don't hang on the batch size.
    """

    name = "random"
    about = "A uniformly drawn subset of the visual tokens, seeded."
    reference = "test_pooling.py::test_the_draw_is_uniform_seeded_and_the_same_in_any_batch"
    incomparable = "a baseline without code of authors"
    layer: int = layer_option(0, "before this decoder layer; 0: before the LLM")
    seed: int = option(0, "of the draw", follows="seed")

    def score(self, tokens: TokenSequence, context: Context) -> Tensor:
        index, real = tokens.images
        draw = torch.rand(index.shape[1], generator=torch.Generator().manual_seed(self.seed)).to(index.device)
        return tokens.per_token(draw.expand(index.shape))
