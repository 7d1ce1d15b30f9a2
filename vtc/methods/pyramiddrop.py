"""PyramidDrop (arXiv 2410.17247): visual redundancy reduction in stages."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vtc.errors import UserError
from vtc.interface import BackboneShape, Compressor, Context, TokenSequence, keep_best, layer_option, resolve_layer
from vtc.interface.flops import next_layer_attention


class PyramidDrop(Compressor):
    """At the end of each stage of layers a fixed share λ of the visual tokens stays, so that their number falls like a
    pyramid.

    Before layers 8, 16 and 24 (of 32) the visual tokens are ranked by the attention that the last instruction token
    pays them in the layer about to run, computed from its own norm, queries and keys: the softmax over the whole row,
    the mean over heads (section 3; the training code takes the mean over the questions of a conversation, and so do
    packed questions here). The best stay, in raster order.

    The budget is what is left at the end: of the n tokens before one of the s stages still to come, the share
    (tokens / n)^(1/s) stays, the same at every stage. An eighth gives the paper's λ = 0.5: 50, 25 and 12.5 %. Tokens
    keep their positions, as with FastV (the authors number them anew after each drop).

    Args:
        tokens: default: an eighth of the visual tokens (72 of 576).
    """

    name = "pyramiddrop"
    about = "PyramidDrop: drops an equal share at several layers, by the last word's attention (arXiv 2410.17247)."
    reference = "test_pyramiddrop.py::test_equals_masks_over_what_the_last_token_attends_to_least"
    default_share = 1 / 8
    reads_prompt = True
    # Four stages of equal depth. Where a shallow decoder has one layer for several, they act there at once.
    stage_layers: Sequence[int] = layer_option(
        (8, 16, 24), "before these decoder layers; the last one leaves `tokens`", name="layers"
    )

    def prepare(self) -> None:
        self.stages = stages_of(self.stage_layers, self.shape.depth, self.layer_scale)

    def layers(self) -> set[int]:
        return set() if self.tokens is None else set(self.stages)

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        if self.tokens is None or tokens.fits(self.tokens):
            return tokens
        _, real = tokens.images
        left = [remaining(n, self.tokens, self.stages[layer]) for n in real.sum(1).tolist()]
        return keep_best(tokens, context.next_layer_attention(tokens), torch.tensor(left, device=real.device))

    def layer_tokens(self) -> list[int]:
        return pyramid(self.tokens, self.shape, self.stages)

    def own_flops(self, text: int) -> float:
        entering = [self.shape.visual_tokens or 0, *self.layer_tokens()]
        return sum(next_layer_attention(self.shape, entering[layer] + text, 1) for layer in self.stages) * self.acts


def stages_of(layers: Sequence[int], depth: int, layer_scale: str, lowest: int = 0) -> dict[int, float]:
    """Layer → which part of the way to the budget is gone there (on a logarithmic scale): 1/3, 1/2, 1 for three.

    Raises:
        UserError: no layer, one that the decoder doesn't have, or not in rising order.
    """
    numbers = [] if isinstance(layers, str) or not isinstance(layers, Sequence) else list(layers)
    own = [resolve_layer(k, depth, layer_scale, lowest, key="method.layers") for k in numbers]
    if not numbers or numbers != sorted(set(numbers)):
        raise UserError(f"method.layers={layers}: allowed: layer numbers in rising order, such as [8,16,24]")
    return {layer: own.count(layer) / (len(own) - own.index(layer)) for layer in own}


def remaining(length: int, tokens: int, part: float) -> int:
    """How many of `length` tokens a stage leaves on the way to `tokens`: length · (tokens / length)^part, rounded."""
    return length if length <= tokens else max(tokens, round(length * (tokens / length) ** part))


def pyramid(tokens: int | None, shape: BackboneShape, stages: dict[int, float]) -> list[int]:
    """`layer_tokens` of a method that acts in stages."""
    left, counts = shape.visual_tokens or 0, []
    for layer in range(shape.depth):
        if tokens is not None and layer in stages:
            left = remaining(left, tokens, stages[layer])
        counts.append(left)
    return counts
