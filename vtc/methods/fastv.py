"""FastV (arXiv 2403.06764): an image is worth 1/2 tokens after layer 2."""

from __future__ import annotations

from torch import Tensor

from vtc.interface import Context, TokenPruner, TokenSequence, layer_option


class FastV(TokenPruner):
    """Before layer K keeps the visual tokens to which the last prompt token attends most in layer K−1.

    The score of token j is A_j = mean over heads of softmax(q_last · k / √d)_j in layer K−1 (section 4.1). The best
    are kept in raster order with their original positions; one choice, at prefill; the caches of layers K… hold the
    kept tokens only. Exactly `tokens` are kept, where the authors keep round(N·(1−R)).

    Args:
        tokens: default: half of the visual tokens (R = 50 %).
    """

    name = "fastv"
    about = "FastV: keeps the visual tokens that the last prompt token attends to (arXiv 2403.06764)."
    reference = "test_fastv.py::test_equals_a_mask_over_what_the_last_token_attends_to_least"
    default_share = 1 / 2
    # The paper's K; 3 in Victor's comparison.
    layer: int = layer_option(2, "before this decoder layer, scored in the one before", lowest=1, reads=-1)

    def probes(self) -> set[int]:
        return {self.layer - 1}

    def score(self, tokens: TokenSequence, context: Context) -> Tensor:
        return context.attention_rows[self.layer - 1]
