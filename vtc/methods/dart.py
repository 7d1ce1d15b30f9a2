"""DART (arXiv 2502.11494): duplication matters more than importance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.errors import UserError
from vtc.interface import Context, TokenPruner, TokenSequence, resolve_layer, two_level

if TYPE_CHECKING:
    from vtc.interface import BackboneShape


class DART(TokenPruner):
    """Before layer K keeps a few pivots and, for each, the visual tokens that duplicate it least.

    Pivots are the visual tokens and the tokens of the prompt's text behind the image whose keys in layer K−1 have the
    largest norm. The duplication of token j by pivot i is the cosine of their hidden states (section 3); pivot by
    pivot, the tokens with the lowest that no earlier pivot has taken are kept, each pivot's share alike. Visual pivots
    are kept too; text stays anyway.

    As the paper leaves it open: pivots take their turn by falling norm, visual ones first (the authors' code goes
    through a set). The norm is the Euclidean one, which the rotation by positions doesn't change (theirs: the sum of
    absolute values after it); the cosine is that of the hidden states themselves (theirs pass the decoder's last norm
    first). Exactly `tokens` are kept (theirs: pivots + pivots · floor(tokens / pivots)); shares differ by one at most,
    and where the budget has no more than `visual` tokens, they are all pivots.

    Args:
        tokens: default: two ninths of the visual tokens (128 of 576, the authors' example).
        layer: K = 2 in the paper.
        visual: visual pivots of an image, 4 in the authors' code.
        text: text pivots, 4 likewise; 0: what is kept doesn't hang on the words.
    """

    name = "dart"

    def __init__(
        self,
        tokens: int | None,
        shape: BackboneShape,
        layer: int = 2,
        visual: int = 4,
        text: int = 4,
        layer_scale: str = "auto",
    ) -> None:
        super().__init__(tokens, shape, resolve_layer(layer, shape.depth, layer_scale, lowest=1))
        for key, value, least in (("visual", visual, 1), ("text", text, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"method.{key}={value}: allowed: a whole number from {least} on")
        self.pivots = (visual, text)

    def probes(self) -> set[int]:
        return {self.layer - 1}

    @torch.no_grad()
    def score(self, tokens: TokenSequence, context: Context) -> Tensor:
        index, real = tokens.images
        norm = context.keys[self.layer - 1].float().norm(dim=-1)
        unit = F.normalize(tokens.hidden.float(), dim=-1).flatten(0, 1)
        points = unit[index]
        of_row = torch.div(index[:, 0], tokens.mask.shape[1], rounding_mode="floor")
        start = of_row[:, None] * tokens.mask.shape[1]

        visual = min(self.pivots[0], self.tokens or real.shape[1], real.shape[1])
        among = norm.flatten()[index].masked_fill(~real, -1)
        own = among.argsort(dim=1, descending=True, stable=True)[:, :visual]
        kept = torch.zeros_like(real).scatter(1, own, True) & real
        words = norm.masked_fill(~context.prompt(tokens), -1)[of_row]
        said = words.argsort(dim=1, descending=True, stable=True)[:, : self.pivots[1]]
        pivots = torch.cat([index.gather(1, own), start + said], 1)  # [I, P] places in the batch
        there = torch.cat([real.gather(1, own), words.gather(1, said) >= 0], 1)

        rest = ((self.tokens or 0) - kept.sum(1)).clamp(min=0)
        turn, total = there.cumsum(1), there.sum(1)  # shares add up: the n-th pivot ends at floor(rest · n / total)
        for p in range(pivots.shape[1]):
            until = torch.div(rest * turn[:, p], total, rounding_mode="floor")
            since = torch.div(rest * (turn[:, p] - there[:, p].long()), total, rounding_mode="floor")
            duplication = (points @ unit[pivots[:, p]][..., None])[..., 0]
            place = duplication.masked_fill(kept | ~real, float("inf")).argsort(dim=1, stable=True).argsort(dim=1)
            kept = kept | ((place < (until - since)[:, None]) & real)
        return tokens.per_token(kept.float())

    @classmethod
    def default_tokens(cls, shape: BackboneShape, **options: Any) -> int | None:
        return shape.visual_tokens and max(1, round(shape.visual_tokens * 2 / 9))

    @classmethod
    def layer_tokens(
        cls, tokens: int | None, shape: BackboneShape, layer: int = 2, layer_scale: str = "auto", **options: Any
    ) -> list[int]:
        return two_level(tokens, shape, resolve_layer(layer, shape.depth, layer_scale, lowest=1))
