"""FastVID (arXiv 2503.11187): dynamic density pruning for fast video large language models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.allowed import number, whole
from vtc.interface import (
    ONE_TOWER,
    PATCH_ATTENTION,
    Compressor,
    Context,
    TokenSequence,
    Tower,
    TowerUse,
    option,
    rank,
    resolve_tower_layer,
)
from vtc.interface.tower import evenly, views
from vtc.methods.peaks import density

NEAREST = 4  # of a token, itself among them, in the authors' code


class FastVID(Compressor):
    """A video is cut where it changes; salient tokens stay, and dense ones of a few frames a segment absorb the rest.

    A row's images are the frames of a video, in order; before the LLM.

    - DySeg: frame t ends a segment where the cosine of its global feature and the next one's is below τ, or among the
      c − 1 smallest. The global feature is the mean of what the projector reads of the frame.
    - Of the budget T of a frame, S = T − ⌊d·T⌋ tokens are salient: those with the greatest attention in the tower
      (`Tower.patch_attention`, mean over heads).
    - The other C = T − S are context, which in a segment of L frames only every p-th frame has, counted back from its
      last: C·L / ⌈L / p⌉ each. They are the tokens of the frame with the greatest ρ·δ among those not salient: ρ =
      exp(−mean of the squared distances to the 4 nearest, itself one of them), δ the distance to the nearest token of
      greater ρ, or the greatest distance of all where there is none; distances Euclidean over √D, of projected tokens.
    - Each token of the segment that isn't salient joins the context token of that frame with the greatest cosine, in
      each frame that has any; a context token of n becomes w · itself + (1 − w) · their mean, w = max(1 / (n + 1), β).

    The authors take feature and attention from the pooling head of SigLIP, which the hub's LLaVA-OneVision doesn't
    have; add noise of 1e-6 to ρ, where here ties go to the earlier token; round C·L / ⌈L / p⌉ down, where here the last
    frames have one more each, so that exactly F · `tokens` are left of F frames; keep the positions of what is kept,
    where here they close up. What a frame can't hold of its context, others of the video keep as salient tokens.

    Args:
        tokens: the mean over the frames; default: a tenth (10 %, the authors' setting).
    """

    name = "fastvid"
    version = 2
    about = "FastVID: salient tokens of a video stay, dense ones of a few frames absorb the rest (arXiv 2503.11187)."
    reference = "test_fastvid.py::test_equals_the_paper_by_loops"
    needs = (ONE_TOWER, PATCH_ATTENTION)
    default_share = 0.1
    across_images = True
    # These five as in the authors' code.
    segments: int = option(8, "c, at the least", allowed=whole(1))
    threshold: float = option(0.9, "τ, of two frames in one segment", allowed=number("-1 to 1", least=-1, most=1))
    context: float = option(0.4, "d, share of the budget", allowed=number("0 to 1", least=0, most=1))
    every: int = option(4, "p: of so many frames one has context tokens", allowed=whole(1))
    own: float = option(0.6, "β, least weight of a context token itself", allowed=number("0 to 1", least=0, most=1))
    tower_layer: int = option(None, "whose attention; null: the layer projected", resolve=resolve_tower_layer)

    def layers(self) -> set[int]:
        return {0}

    def tower(self) -> TowerUse:
        return TowerUse(watch=frozenset({self.tower_layer}))

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        if self.tokens is None or tokens.fits(self.tokens):
            return tokens
        (_, real), (row, _) = tokens.images, tokens.frames
        attention, whole_frame = self.seen(context.seen(), real)
        hidden = tokens.visual_hidden().float()
        kept, changed = torch.zeros_like(real), torch.zeros_like(real)
        values = hidden.clone()
        for video in row.unique().tolist():
            first = int((row == video).nonzero()[0])
            sizes = real[row == video].sum(1).tolist()
            cut = self.cut(whole_frame[row == video])
            salient, dense = self.shares(sizes, cut)
            for segment in cut:
                frames, rest, pool = range(first + segment.start, first + segment.stop), {}, []
                for t in frames:
                    place = rank(attention[t : t + 1].masked_fill(~real[t], -1))[0]
                    kept[t] = (place < salient[t - first]) & real[t]
                    rest[t] = (real[t] & ~kept[t]).nonzero()[:, 0]
                    pool.append(hidden[t, rest[t]])
                for t in frames:
                    if dense[t - first]:
                        score = density(hidden[t, rest[t]].detach(), NEAREST)[0]
                        chosen = rest[t][score.argsort(descending=True, stable=True)[: dense[t - first]]]
                        values[t, chosen] = self.absorbed(hidden[t, chosen], torch.cat(pool))
                        kept[t, chosen] = changed[t, chosen] = True
        return tokens.rewrite(values, changed).keep_visual(kept)

    @torch.no_grad()
    def seen(self, tower: Tower, real: Tensor) -> tuple[Tensor, Tensor]:
        """[I, N] the tower's attention to visual tokens, 0 to those without a patch; [I, C'] frames at unit length."""
        attention = torch.zeros(real.shape, device=real.device)
        total = torch.zeros(len(real), tower.features.shape[-1], device=real.device)
        for view in views(tower, None):
            attention[view.image[:, None], view.token] = view.tower.patch_attention(self.tower_layer).mean(1)
            total.index_add_(0, view.image, view.tower.patch_features().float().sum(1))
        return attention, F.normalize(total, dim=-1)

    def cut(self, frames: Tensor) -> list[range]:
        """The segments of frames [F, C'] at unit length."""
        like = (frames[:-1] * frames[1:]).sum(1)
        last = (like < self.threshold) | (rank(-like[None])[0] < self.segments - 1)
        bounds = [0, *(last.nonzero()[:, 0] + 1).tolist(), len(frames)]
        return list(map(range, bounds, bounds[1:]))

    def shares(self, sizes: list[int], segments: list[range]) -> tuple[list[int], list[int]]:
        """How many salient and how many context tokens each frame of these sizes keeps."""
        budget = self.tokens or 0
        few = int(budget * self.context)
        salient, dense = [min(budget - few, size) for size in sizes], [0] * len(sizes)
        for segment in segments:
            holders = segment[:: -self.every]
            for t, share in zip(holders, evenly(few * len(segment), [10**9] * len(holders)), strict=True):
                dense[t] = min(share, sizes[t] - salient[t])
        over = min(budget * len(sizes), sum(sizes)) - sum(salient) - sum(dense)
        room = [size - a - b for size, a, b in zip(sizes, salient, dense, strict=True)]
        return [a + more for a, more in zip(salient, evenly(over, room), strict=True)], dense

    def absorbed(self, targets: Tensor, pool: Tensor) -> Tensor:
        """[K, D]: what targets [K, D] become when each of pool [R, D] has joined the most similar."""
        similar = F.normalize(pool.detach(), dim=-1) @ F.normalize(targets.detach(), dim=-1).T
        joins = F.one_hot(similar.argmax(1), len(targets)).to(pool).T
        count = joins.sum(1, keepdim=True)
        weight = (1 / (count + 1)).clamp(min=self.own)
        return weight * targets + (1 - weight) * (joins @ pool) / count.clamp(min=1)

    def own_flops(self, text: int) -> float:
        few = int((self.tokens or 0) * self.context)
        rest = (self.shape.visual_tokens or 0) - (self.tokens or 0) + few
        return 4.0 * rest * few * self.shape.width * self.acts  # of one image: compared and added up
