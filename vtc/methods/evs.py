"""EVS (arXiv 2510.14624): efficient video sampling, pruning temporally redundant tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.interface import PLACES, Context, TokenSequence, VideoPruner
from vtc.methods.avgpool import raster_groups

FIRST = 1e4  # above and, negated, below any score of the other tokens


class EVS(VideoPruner):
    """Drops the patches that changed least against the same place in the previous frame.

    A row's images are the frames of a video, in order. The score of patch i of frame t is its dissimilarity
    1 − cos(v_t,i , v_t−1,i), with v the projected tokens; the first frame stays whole, and of all others together the
    best are kept, wherever they are (a static stretch may vanish). Before the LLM; kept tokens close up, in order.

    Exactly F · `tokens` of F frames are kept, where the authors never go below one frame's worth. Where F · `tokens` is
    less than a frame has, the first frame can't stay whole: it gives its share too, `tokens` patches at even distances
    in raster order, and the others compete for the rest. So does a single image, which is a first frame.

    Where a frame has more patches than the previous one, the patches without a counterpart count as new.

    Args:
        tokens: the mean over the frames; default: a quarter (75 % are pruned).
    """

    name = "evs"
    about = "EVS: of a video's frames, drops what hardly changed since the previous one (arXiv 2510.14624)."
    reference = "test_evs.py::test_keeps_what_changed_most"
    incomparable = "the authors never go below one frame's worth of tokens; here any budget is exact"
    default_share = 1 / 4
    needs = (PLACES,)

    @torch.no_grad()
    def score(self, tokens: TokenSequence, context: Context) -> Tensor:
        (_, real), (_, frame) = tokens.images, tokens.frames
        changed = 1 - similarity(tokens, torch.ones_like(frame))
        return beside_whole(tokens, frame == 0, changed, self.tokens or real.shape[1])


def similarity(tokens: TokenSequence, back: Tensor) -> Tensor:
    """[I, N]: cosine of each visual token and the one in the same place `back` [I] images before; -1 where there is
    none."""
    _, real = tokens.images
    unit = F.normalize(tokens.visual_hidden().float(), dim=-1)
    before = (torch.arange(len(unit), device=unit.device) - back).clamp(min=0)
    return (unit * unit[before]).sum(-1).masked_fill(~(real & real[before]), -1)


def beside_whole(tokens: TokenSequence, stays: Tensor, score: Tensor, count: int) -> Tensor:
    """[B, L]: `score` [I, N], and scores that keep the images `stays` [I] as they are where the row's budget, `count`
    an image, allows it; else `count` tokens of each at even distances, and no others."""
    _, real = tokens.images
    row, _ = tokens.frames
    rows = len(tokens.mask)
    needed = torch.zeros(rows, dtype=torch.long, device=row.device).index_add(0, row, real.sum(1) * stays)
    fits = (needed <= count * torch.bincount(row, minlength=rows))[row]
    groups = raster_groups(real, count)
    opens = torch.cat([torch.ones_like(real[:, :1]), groups[:, 1:] != groups[:, :-1]], 1)
    return tokens.per_token(torch.where(stays[:, None], torch.where(fits[:, None] | opens, FIRST, -FIRST), score))
