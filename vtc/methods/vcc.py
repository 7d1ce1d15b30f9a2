"""VCC (arXiv 2305.04241) as a compressor of visual tokens (LLaVolta, arXiv 2406.20092, section 3.2 and table 3)."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor

from vtc.allowed import whole
from vtc.interface import Context, TokenMerger, TokenSequence, layer_option, merge_images, option
from vtc.interface.flops import next_layer_attention
from vtc.methods.avgpool import raster_groups


class VCC(TokenMerger):
    """VIP-token centric compression: the blocks that the prompt attends to stay fine, each of the others is merged.

    The paper compresses a long sequence in every layer (section 3): it is cut into blocks of 16 tokens; the mean of a
    block is a coarse token; a few VIP tokens (those of a question, say) attend to the coarse tokens with the layer's
    own norm, queries and keys; the blocks with the highest attention, mean over heads and VIPs, are put back as the
    tokens they were.

    Here the sequence is an image's visual tokens in raster order, before layer K alone, and the VIPs are the prompt's
    text behind the image. LLaVolta names its settings nowhere, but its table 3 counts 3582 tokens over 32 layers, and
    2·576 + 30·81 = 3582, where 81 = 3·16 + 33: of 576 / 16 = 36 blocks, 3 stay fine. That is the default.

    Ours, so that any budget is met exactly: what the budget has beyond one token a block goes to the blocks in the
    order of their attention. Each is split into single tokens, the last one into as many runs as are left (lengths
    differ by one at most). Left out: the correction of the softmax by the sizes of the blocks (the LLM stays as it is),
    and in training the straight-through weight on the ranking and its random exploration. Means pass gradients on, the
    ranking doesn't.

    It can't leave fewer tokens than there are blocks; a larger `block` can.

    Args:
        tokens: from ceil(N / block) to N; default: three fine blocks.
    """

    name = "vcc"
    about = "VCC: blocks of visual tokens that the prompt attends to stay, the others are merged (arXiv 2305.04241)."
    reference = "test_vcc.py::test_equals_the_decoder_over_the_groups"
    incomparable = "LLaVolta, which compares it, names its settings nowhere; here it acts before one layer"
    reads_prompt = True
    # K of LLaVolta's table 3. Before the LLM, its first layer says what is attended to.
    layer: int = layer_option(2, "before this decoder layer; 0: before the LLM", reads=0)
    # An image that has more blocks than `tokens` (where images differ in size) is cut into `tokens` larger ones.
    block: int = option(16, "tokens of a block; fewer tokens than blocks can't be left", allowed=whole(1))

    def assign(self, tokens: TokenSequence, context: Context) -> tuple[Tensor, None]:
        _, real = tokens.images
        if self.tokens is None or tokens.fits(self.tokens):
            return raster_groups(real, real.shape[1]), None
        blocks = raster_groups(real, real.sum(1, keepdim=True).div(self.block).ceil().long().clamp(max=self.tokens))
        with torch.no_grad():
            coarse = merge_images(tokens, blocks)
            score = context.next_layer_attention(coarse, queries=context.prompt(coarse), over=coarse.visual)
        return split(blocks, real, score.flatten()[coarse.images[0]], self.tokens), None

    def default_tokens(self) -> int | None:
        full = self.shape.visual_tokens
        return full and min(full, ceil(full / self.block) + 3 * (self.block - 1))

    def offers(self) -> Sequence[int]:
        full = self.shape.visual_tokens or 0
        return range(ceil(full / self.block), full + 1)

    def own_flops(self, text: int) -> float:
        blocks = min(ceil((self.shape.visual_tokens or 0) / self.block), self.tokens or 0)
        return next_layer_attention(self.shape, blocks + text, text) * self.acts


def split(blocks: Tensor, real: Tensor, score: Tensor, tokens: int) -> Tensor:
    """[I, N]: groups, `tokens` in each image (one for each token of an image that has no more).

    Args:
        blocks: [I, N] block of each token: runs 0…, in raster order, no more than `tokens` in an image.
        real: [I, N] bool.
        score: [I, C] of the blocks; ties go to the earlier one.
    """
    size = torch.zeros_like(score, dtype=torch.long).scatter_add(1, blocks, real.long())
    rest = (tokens - (size > 0).sum(1, keepdim=True)).clamp(min=0)
    order = score.argsort(dim=1, descending=True, stable=True)
    gain = (size.gather(1, order) - 1).clamp(min=0)  # what a block adds if all of it stays fine
    gain = torch.minimum(gain, (rest - gain.cumsum(1) + gain).clamp(min=0))
    pieces = (size > 0).long().scatter_add(1, order, gain)
    start, first = size.cumsum(1) - size, pieces.cumsum(1) - pieces
    rank = real.cumsum(1) - 1 - start.gather(1, blocks)
    return first.gather(1, blocks) + rank * pieces.gather(1, blocks) // size.gather(1, blocks).clamp(min=1)
