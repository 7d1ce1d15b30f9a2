"""CDPruner (arXiv 2506.10967): maximizing conditional diversity for token pruning."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.interface import Context, TokenPruner, TokenSequence, option
from vtc.methods.divprune import take_best


class CDPruner(TokenPruner):
    """Keeps the visual tokens that a determinantal point process, conditioned on the instruction, finds most diverse.

    The kernel is L'_ij = r_i · cos(v_i, v_j) · r_j, with v the projected tokens and r their relevance to the
    instruction, scaled to [0, 1] over the image; the subset S with the largest det L'_S is sought greedily, each step
    by the update of the Cholesky factor (section 3; fast greedy MAP inference). Before the LLM.

    The relevance is ours: the paper compares CLIP's image patches with CLIP's text embedding of the question (the
    authors' code with a minus sign, which CLIP's patches ask for), and a LLaVA checkpoint has no CLIP text tower. What
    every backbone has are its visual tokens and its embeddings of the prompt's text behind the image, one space for
    both: r is the mean of cos(v_i, t_j) over those t, as the paper does for models without CLIP. Words and patches need
    not be close there, so expect less of the condition than the paper reports; `condition=false` leaves the diversity
    alone.

    Where tokens depend on each other linearly (`tokens` above the width, or equal patches), the determinant is 0
    whatever comes next; then the earliest are taken.

    Args:
        tokens: default: a ninth of the visual tokens (64 of 576, the paper's middle budget).
    """

    name = "cdpruner"
    about = "CDPruner: the most diverse visual tokens, weighed by the instruction, before the LLM (arXiv 2506.10967)."
    reference = "test_cdpruner.py::test_keeps_what_the_determinants_say"
    default_share = 1 / 9
    condition: bool = option(True, "false: diversity alone, whatever the question")

    def prepare(self) -> None:
        self.reads_prompt = self.condition

    @torch.no_grad()
    def score(self, tokens: TokenSequence, context: Context) -> Tensor:
        _, real = tokens.images
        unit = F.normalize(tokens.visual_hidden().float(), dim=-1)
        kernel = unit @ unit.transpose(1, 2)
        kernel.diagonal(dim1=1, dim2=2).fill_(1)  # else rounding would make the first pick
        if self.condition:
            text = context.prompt(tokens)
            words = F.normalize(tokens.hidden.float(), dim=-1) * text[..., None]
            mean = words.sum(1) / text.sum(1, keepdim=True).clamp(min=1)
            of_row, _ = tokens.frames
            r = scaled((unit @ mean[of_row][..., None])[..., 0], real)
            kernel = r[:, :, None] * kernel * r[:, None]
        return tokens.per_token(most_diverse(kernel, real, self.tokens or real.shape[1]))

    def own_flops(self, text: int) -> float:
        n, picks = self.shape.visual_tokens or 0, self.tokens or 0
        return (2.0 * n**2 * self.shape.width + n * picks**2) * self.acts  # cosines, and the factor's updates


def scaled(relevance: Tensor, real: Tensor) -> Tensor:
    """[I, N] scaled to [0, 1] over the real ones of each image; 1 where all are the same."""
    low = relevance.masked_fill(~real, float("inf")).amin(1, keepdim=True)
    span = relevance.masked_fill(~real, float("-inf")).amax(1, keepdim=True) - low
    return torch.where(span > 0, (relevance - low + 1e-6) / span.clamp(min=1e-12), 1.0)


def most_diverse(kernel: Tensor, real: Tensor, count: int) -> Tensor:
    """[I, N]: `count` for the first pick, down to 1 for the last, 0 for the others. Ties go to the earlier token.

    Args:
        kernel: [I, N, N], positive semidefinite.
        real: [I, N] bool. Of an image with fewer than `count`, all real ones are picked.
    """
    gain = kernel.diagonal(dim1=1, dim2=2).clone()  # det L_{S+i} / det L_S
    noise = 1e-6 * gain
    whole = kernel.new_zeros(len(kernel), count, kernel.shape[1])  # rows of the Cholesky factor
    rank, left = torch.zeros_like(gain), real.clone()
    for pick in range(count):
        best = take_best(gain, left, rank, count - pick)
        at, adds, factor = best[..., None], gain.gather(1, best)[..., None], whole[:, :pick]
        row = kernel.gather(1, at.expand(-1, -1, kernel.shape[2]))
        row = row - factor.gather(2, at.expand(-1, factor.shape[1], -1)).transpose(1, 2) @ factor
        row = torch.where(adds > 0, row / adds.sqrt(), 0)
        whole[:, pick] = row[:, 0]
        gain = gain - row[:, 0].square()
        gain = torch.where(gain > noise, gain, 0)
    return rank
