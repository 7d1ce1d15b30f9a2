"""VoCo-LLaMA (arXiv 2406.12275): towards vision compression with large language models."""

from __future__ import annotations

import torch
from torch import nn

from vtc.interface import Compressor, Context, TokenSequence, option


class VoCo(Compressor):
    """M VoCo tokens stand behind each image's visual tokens, and what follows sees the image through them alone.

    (V, VoCo, T) runs through all layers of the LLM under the mask of section 3.2: token i sees token j ≤ i, unless i is
    text and j visual. The LLM so distils V into the keys and values of the VoCo tokens. When the prefill is over the
    visual tokens' keys and values leave the cache: decoding, and every later question, reads M tokens an image.
    Positions stay as if the image were there. Next-token prediction under this mask trains the VoCo tokens and the LLM.

    The paper leaves open, and here it is so: text IN FRONT of the image is seen by the image and the VoCo tokens, as
    causal attention has it; of several images the second one's visual and VoCo tokens see the first one's VoCo tokens
    only, as text does; each VoCo token is an embedding of its own (`shared`: one embedding M times, told apart by
    position).

    What it saves is the cache and decoding, not the prefill: every layer sees N + M tokens there, so `compression=` and
    `flops=` below the uncompressed model's are out of its reach. It can't run under FlashAttention (an explicit mask).

    Args:
        tokens: M; default 1, the paper's 576×.
    """

    name = "voco"
    about = "VoCo-LLaMA: the text sees the image through VoCo tokens behind it alone, which stay (arXiv 2406.12275)."
    reference = "test_voco.py::test_prefill_and_decoding_are_those_of_the_explicit_mask"
    default_count = 1
    needs_training = True
    fixed_budget = True
    trained_options = ("shared",)
    bottleneck = True

    shared: bool = option(False, "true: one embedding for all VoCo tokens")

    def make_parameters(self) -> None:
        count = 1 if self.shared else self.tokens or 1
        self.registers = nn.Parameter(torch.randn(count, self.shape.width) * 0.02)

    def layers(self) -> set[int]:
        return {0}

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        return tokens.insert(self.registers.expand(self.tokens or 1, -1))  # [M, D]

    def layer_tokens(self) -> list[int]:
        return [(self.shape.visual_tokens or 0) + (self.tokens or 1)] * self.shape.depth
