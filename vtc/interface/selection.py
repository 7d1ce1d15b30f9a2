"""Which tokens stay and which merge, from a score or a group for each: what many methods end with."""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.interface.checks import require
from vtc.interface.tokens import TokenSequence


def rank(score: Tensor) -> Tensor:
    """[R, N]: the place of each score among those of its row, 0 for the highest; ties go to the earlier one."""
    return score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def keep_best(tokens: TokenSequence, score: Tensor, count: Tensor) -> TokenSequence:
    """Without the visual tokens that aren't among the best of their image. Ties go to the earlier token.

    Args:
        score: [B, L], higher is better; only the visual tokens' scores are read.
        count: [I], how many are kept of each image (images as in `tokens.images`).
    """
    require("a score", score, tokens.mask.shape, tokens.visual)
    index, real = tokens.images
    own = score.flatten()[index].float().masked_fill(~real, float("-inf"))
    return tokens.keep_visual(rank(own) < count[:, None])


def keep_best_of_rows(tokens: TokenSequence, score: Tensor, count: Tensor) -> TokenSequence:
    """The same for `count` [B] of each row, whichever of its images they are of."""
    require("a score", score, tokens.mask.shape, tokens.visual)
    own = score.float().masked_fill(~tokens.visual, float("-inf"))
    return tokens.keep(~tokens.visual | (rank(own) < count[:, None]))


def merge_images(
    tokens: TokenSequence,
    groups: Tensor,
    weights: Tensor | None = None,
    centre: Tensor | None = None,
    proportional: bool = False,
) -> TokenSequence:
    """Merges visual tokens by groups [I, N] that count from 0 in each image (-1 leaves a token alone).

    Args:
        weights: [I, N] ≥ 0; None: plain means. Images as in `tokens.images`.
        centre: [I, N] bool, one member of each group; None: its first one. `proportional`: see `TokenSequence.merge`.
    """
    _, real = tokens.images
    for what, values in {"groups": groups, "weights": weights, "centres": centre}.items():
        if values is not None:
            require(what, values, real.shape)
    most = int(groups.max()) + 1
    spread = tokens.per_token(groups.masked_fill(~real, -1), -1)
    spread = torch.where(spread >= 0, spread + most * tokens.image, -1)  # groups of different images stay apart
    spread_weights = None if weights is None else tokens.per_token(weights)
    return tokens.merge(spread, spread_weights, None if centre is None else tokens.per_token(centre), proportional)
