"""DART (arXiv 2502.11494): duplication matters more than importance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.allowed import one_of, whole
from vtc.interface import Context, TokenPruner, TokenSequence, layer_option, option, rank


class DART(TokenPruner):
    """Before layer K keeps a few pivots and, for each, the visual tokens that duplicate it least.

    Pivots are the visual tokens and the tokens of the prompt's text behind the image whose keys in layer K−1 have the
    largest norm. The duplication of token j by pivot i is the cosine of their hidden states (section 3); pivot by
    pivot, the tokens with the lowest that no earlier pivot has taken are kept, each pivot's share alike. Visual pivots
    are kept too; text stays anyway.

    As the paper leaves it open: pivots take their turn by falling norm, visual ones first, or with `order=place` as
    they stand in the sequence (the authors' code goes through a set, in neither order). The norm is the Euclidean one,
    which the rotation by positions doesn't change; `norm=l1` is theirs, the sum of absolute values after it. The cosine
    is that of the hidden states themselves (theirs pass the decoder's last norm first). Exactly `tokens` are kept
    (theirs: pivots + pivots · floor(tokens / pivots)); shares differ by one at most, and where the budget has no more
    than `visual` tokens, they are all pivots. In pocket's mean at 16 tokens neither option shows: `norm=l1` -0.004
    [-0.010, +0.003], `order=place` -0.001 [-0.006, +0.004].

    Args:
        tokens: default: two ninths of the visual tokens (128 of 576, the authors' example).
    """

    name = "dart"
    about = "DART: keeps the visual tokens that a few pivots duplicate least (arXiv 2502.11494)."
    reference = "test_dart.py::test_keeps_what_the_pivots_duplicate_least"
    incomparable = "the authors rank pivots by another norm and go through a set; here the order is given"
    default_share = 2 / 9
    layer: int = layer_option(2, "before this decoder layer; pivots by the keys of the one before", lowest=1, reads=-1)
    visual: int = option(4, "visual pivots of an image", allowed=whole(1))
    text: int = option(4, "pivots among the prompt's words; 0: the image alone", allowed=whole(0))
    norm: str = option(
        "l2", "of the keys; l1: once rotated by position, as in the authors' code", allowed=one_of("l2", "l1")
    )
    order: str = option("norm", "of the pivots' turns; place: as they stand", allowed=one_of("norm", "place"))

    def probes(self) -> set[int]:
        return {self.layer - 1}

    @torch.no_grad()
    def score(self, tokens: TokenSequence, context: Context) -> Tensor:
        index, real = tokens.images
        norm = self.norms(context)
        unit = F.normalize(tokens.hidden.float(), dim=-1).flatten(0, 1)
        points = unit[index]
        of_row, _ = tokens.frames
        start = of_row[:, None] * tokens.mask.shape[1]

        visual = min(self.visual, self.tokens or real.shape[1], real.shape[1])
        among = norm.flatten()[index].masked_fill(~real, -1)
        own = among.argsort(dim=1, descending=True, stable=True)[:, :visual]
        kept = torch.zeros_like(real).scatter(1, own, True) & real
        words = norm.masked_fill(~context.prompt(tokens), -1)[of_row]
        verbal = words.argsort(dim=1, descending=True, stable=True)[:, : self.text]
        pivots = torch.cat([index.gather(1, own), start + verbal], 1)  # [I, P] places in the batch
        there = torch.cat([real.gather(1, own), words.gather(1, verbal) >= 0], 1)
        if self.order == "place":
            place = pivots.argsort(dim=1)
            pivots, there = pivots.gather(1, place), there.gather(1, place)

        rest = ((self.tokens or 0) - kept.sum(1)).clamp(min=0)
        turn, total = there.cumsum(1), there.sum(1)  # shares add up: the n-th pivot ends at floor(rest · n / total)
        for p in range(pivots.shape[1]):
            until = torch.div(rest * turn[:, p], total, rounding_mode="floor")
            since = torch.div(rest * (turn[:, p] - there[:, p].long()), total, rounding_mode="floor")
            duplication = (points @ unit[pivots[:, p]][..., None])[..., 0]
            place = rank(-duplication.masked_fill(kept | ~real, float("inf")))
            kept = kept | ((place < (until - since)[:, None]) & real)
        return tokens.per_token(kept.float())

    def norms(self, context: Context) -> Tensor:
        """[B, L]: of the keys in layer K−1."""
        if self.norm == "l1":
            return context.rotated_keys[self.layer - 1]().float().abs().sum(-1)
        return context.keys[self.layer - 1].float().norm(dim=-1)
