"""PyramidDrop (arXiv 2410.17247): visual redundancy reduction in stages."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vtc.allowed import Allowed, number
from vtc.errors import UserError
from vtc.interface import (
    BackboneShape,
    Compressor,
    Context,
    TokenSequence,
    keep_best,
    layer_option,
    option,
    readable,
    resolve_layer,
)
from vtc.interface.flops import next_layer_attention


def falling(shares: object) -> bool:
    """Whether these are shares of which each is smaller than the one before."""
    if isinstance(shares, str) or not isinstance(shares, Sequence):
        return False
    share = number("0 to 1", least=0, most=1)
    return all(map(share.accepts, shares)) and list(shares) == sorted(set(shares), reverse=True)


class PyramidDrop(Compressor):
    """At the end of each stage of layers a fixed share λ of the visual tokens stays, so that their number falls like a
    pyramid.

    Before layers 8, 16 and 24 (of 32) the visual tokens are ranked by the attention that the last instruction token
    pays them in the layer about to run, computed from its own norm, queries and keys: the softmax over the whole row,
    the mean over heads (section 3; the training code takes the mean over the questions of a conversation, and so do
    packed questions here). The best stay, in raster order.

    The budget is what is left at the end: of the n tokens before one of the s stages still to come, the share
    (tokens / n)^(1/s) stays, the same at every stage. An eighth gives the paper's λ = 0.5: 50, 25 and 12.5 %. With
    `ratios` the stages before the last leave these shares of an image's tokens. Tokens keep their positions, as with
    FastV; the authors number them anew after each drop, which `renumber` does (not where positions are a grid): -0.012
    in pocket's mean at 16 tokens, [-0.018, -0.007].

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
        (8, 16, 24), "before these decoder layers; the last one leaves `tokens`", name="layers", reads=0
    )
    ratios: Sequence[float] | None = option(
        None,
        "shares of an image's tokens that the stages before the last leave, [0.5,0.25]; null: equal steps",
        allowed=Allowed("falling shares between 0 and 1, such as [0.5,0.25], null", falling).or_null(),
    )
    renumber: bool = option(False, "true: positions close up after each drop, as in the authors' code")

    def prepare(self) -> None:
        depth, stated, among = self.shape.depth, len(self.stage_layers) - 1, readable(self.shape, 0)
        self.stages = stages_of(self.stage_layers, depth, self.layer_scale, among=among)
        resolved = (resolve_layer(k, depth, self.layer_scale, 0, "method.layers", among) for k in self.stage_layers)
        self.all_stages = list(resolved)
        if self.ratios is not None and len(self.ratios) != stated:
            raise UserError(f"method.ratios={list(self.ratios)}: {stated} stages come before the last; give so many")

    def layers(self) -> set[int]:
        return set() if self.tokens is None else set(self.stages)

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        if self.tokens is None or tokens.fits(self.tokens):
            return tokens
        _, real = tokens.images
        sizes = real.sum(1).tolist()
        full = context.memo.setdefault("pyramiddrop", sizes)
        left = [self.leaves_of(n, size, layer) for n, size in zip(sizes, full, strict=True)]
        score = context.next_layer_attention(tokens)
        before = tokens.renumbered() if self.renumber else tokens
        return keep_best(before, score, torch.tensor(left, device=real.device))

    def leaves_of(self, count: int, full: int, layer: int) -> int:
        """How many of the `count` tokens that are left of an image of `full` stay before this layer."""
        tokens = self.tokens or 0
        if self.ratios is None:
            return remaining(count, tokens, self.stages[layer])
        past = sum(resolved <= layer for resolved in self.all_stages)  # stages that act here or did before
        return min(count, tokens if past > len(self.ratios) else max(tokens, round(full * self.ratios[past - 1])))

    def layer_tokens(self) -> list[int]:
        full = left = self.shape.visual_tokens or 0
        counts = []
        for layer in range(self.shape.depth):
            if self.tokens is not None and layer in self.stages:
                left = self.leaves_of(left, full, layer)
            counts.append(left)
        return counts

    def own_flops(self, text: int) -> float:
        entering = [self.shape.visual_tokens or 0, *self.layer_tokens()]
        return sum(next_layer_attention(self.shape, entering[layer] + text, 1) for layer in self.stages) * self.acts


def stages_of(
    layers: Sequence[int], depth: int, layer_scale: str, lowest: int = 0, among: Sequence[int] | None = None
) -> dict[int, float]:
    """Layer → which part of the way to the budget is gone there (on a logarithmic scale): 1/3, 1/2, 1 for three.

    Raises:
        UserError: no layer, one that the decoder doesn't have, or not in rising order.
    """
    numbers = [] if isinstance(layers, str) or not isinstance(layers, Sequence) else list(layers)
    own = [resolve_layer(k, depth, layer_scale, lowest, "method.layers", among) for k in numbers]
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
