"""FEATHER (arXiv 2412.13180): prune late as well as early, by attention without position, and cover the whole image.

python -m vtc action=check method=examples/feather.py backbone=qwen2vl_2b
"""

from dataclasses import replace

import torch

from vtc.interface import Compressor, Context, TokenSequence, keep_best, layer_option, option
from vtc.interface.flops import next_layer_attention


class Feather(Compressor):
    """Two prunings. Before layer 8 (of 32) every third visual token stays, and of the others the best; before layer
    16 the best of all. A token's score is the attention that the last prompt token pays it in the layer about to run,
    computed without rotary embeddings, whose decay with distance favours the bottom of the image.

    The early stage leaves the share r + (1 - r) / s of the tokens, as many as the best share r and every s-th of the
    others are (the authors' r = 0.3, s = 3); the budget is what is left at the end, exactly. Where a shallow decoder
    has one layer for both, only the late one acts.
    """

    name = "feather"
    about = "FEATHER: attention without position, twice, with uniform sampling at first (arXiv 2412.13180)."
    default_share = 1 / 8
    reads_prompt = True
    early: int = layer_option(8, "before this decoder layer, with uniform sampling")
    late: int = layer_option(16, "before this decoder layer; `tokens` are left")
    share: float = option(0.3, "of the visual tokens, kept early by their score")
    stride: int = option(3, "of the uniform sampling, in raster order")

    def layers(self) -> set[int]:
        return {self.early, self.late}

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        if self.tokens is None or tokens.fits(self.tokens):
            return tokens
        _, real = tokens.images
        score = context.next_layer_attention(replace(tokens, position=torch.zeros_like(tokens.position)))
        if layer != self.late:
            uniform = real & ((real.cumsum(1) - 1) % self.stride == 0)
            score = score + 2 * tokens.per_token(uniform.to(score.dtype))  # attention is 1 at most
        left = [self.tokens if layer == self.late else self.first(n) for n in real.sum(1).tolist()]
        return keep_best(tokens, score, torch.tensor(left, device=real.device).clamp(max=real.sum(1)))

    def first(self, count: int) -> int:
        """Of `count` visual tokens, those that the early stage leaves."""
        return max(self.tokens or 0, round(count * (self.share + (1 - self.share) / self.stride)))

    def layer_tokens(self) -> list[int]:
        full, late = self.shape.visual_tokens or 0, self.tokens or self.shape.visual_tokens or 0
        counts = {True: min(full, late), False: min(full, self.first(full))}
        return [full if i < min(self.layers()) else counts[i >= self.late] for i in range(self.shape.depth)]

    def own_flops(self, text: int) -> float:
        before = [self.shape.visual_tokens or 0, *self.layer_tokens()]
        return sum(next_layer_attention(self.shape, before[k] + text, 1) for k in self.layers()) * self.acts
