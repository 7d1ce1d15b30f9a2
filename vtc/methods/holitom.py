"""HoliTom (arXiv 2505.21334): holistic token merging for fast video large language models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.allowed import number
from vtc.interface import (
    ONE_TOWER,
    PATCH_ATTENTION,
    PLACES,
    Context,
    TokenSequence,
    TowerUse,
    layer_option,
    option,
    rank,
    resolve_tower_layer,
)
from vtc.interface.tower import views
from vtc.methods.peaks import peaks
from vtc.methods.scenes import Part, SceneMerger

NEAREST = 7  # of a token, itself among them, in the authors' code


class HoliTom(SceneMerger):
    """A video is cut so that most repeats over time; that merges, then each part shrinks, then the LLM merges again.

    A row's images are the frames of a video, in order.

    - Temporal merging: a place s repeats in frame t where the cosine of its projected tokens in t − 1 and t is above τ.
      Of a segment of frames b … e the places that repeat in all of b + 1 … e can merge, which saves e − b tokens each.
      The segments save the most of all that there could be (dynamic programming; of equals those with a shorter last
      segment). A token that merges is the mean over its segment, in the first frame.
    - Spatial merging: of what is left the same share stays everywhere. Of the tokens that did not merge, frame by
      frame, those that have the greatest attention in the tower (`Tower.patch_attention`, mean over heads). Of those
      that did, in each segment, centres by density peaks (the min(7, centres) nearest); a centre becomes β · itself +
      (1 − β) · the mean of those to which it is the nearest, if there are any.
    - Inner-LLM merging: before layer K those visual tokens of the video stay to which the last prompt token attends
      most in layer K − 1. Each of the others joins the most similar of these (cosine of the hidden states), one after
      the other: (h + h') / 2 each time, as in the authors' code, so that the last weighs most.

    The budget: `tokens` a frame are left in the end, exactly F · `tokens` of F frames, and `retained` times as many
    before layer K. The authors' retention ratio is that of the latter, and their r is 1 − 1 / `retained`. They round
    the share of each part, where here the parts' numbers are rounded so that they add up. Where merging over time
    leaves fewer than that (they then keep fewer) the tokens least similar to the frame before stay themselves.

    The authors add noise of 1e-6 to densities, where here ties go to the earlier token; they put a segment's merged
    tokens before its others on LLaVA-OneVision, where here they stand in the places of the first frame, as theirs on
    LLaVA-Video do. Their code has two more settings, off or without effect at its defaults, which aren't here: a share
    of tokens beside the most salient ones, and a longest window of 1,024 frames. With a CLS token in the tower,
    attention is what that pays; SigLIP, which they use, has none.

    Args:
        tokens: the mean over the frames; default: 7.5 % (their 15 % before layer K).
    """

    name = "holitom"
    about = "HoliTom: what repeats in a video's segments merges, by place and by density, then in the LLM (2505.21334)."
    reference = "test_holitom.py::test_equals_the_equations_by_loops"
    needs = (ONE_TOWER, PATCH_ATTENTION, PLACES)
    default_share = 0.075
    layer: int = layer_option(  # 18 of the 28 layers of Qwen2-7B
        21, "K: before this decoder layer `tokens` are left, scored in the one before", lowest=1, reads=-1
    )
    retained: float = option(
        2.0, "times `tokens` are left before the LLM", allowed=number("a number from 1 on", least=1)
    )
    threshold: float = option(0.8, "τ, of a token and its predecessor", allowed=number("-1 to 1", least=-1, most=1))
    own: float = option(0.6, "β, weight of a centre itself", allowed=number("0 to 1", least=0, most=1))
    tower_layer: int = option(None, "whose attention; null: the layer projected", resolve=resolve_tower_layer)

    def tower(self) -> TowerUse:
        return TowerUse(watch=frozenset({self.tower_layer}))

    def probes(self) -> set[int]:
        return {self.layer - 1}

    def rate(self, tokens: TokenSequence, context: Context) -> Tensor:
        attention = super().rate(tokens, context)  # of what is made of no patch: 0
        for view in views(context.seen(), None):
            attention[view.image[:, None], view.token] = view.tower.patch_attention(self.tower_layer).mean(1)
        return attention

    def scenes(self, frames: Tensor, real: Tensor) -> tuple[list[range], Tensor, Tensor]:
        unit = F.normalize(frames, dim=-1)
        like = torch.full(real.shape, -1.0, device=real.device)
        like[1:] = (unit[1:] * unit[:-1]).sum(-1).masked_fill(~(real[1:] & real[:-1]), -1)
        repeats = like > self.threshold
        segments, still = most_saving(repeats[1:]), torch.zeros_like(real)
        for s in segments:
            still[s.start : s.stop] = repeats[s.start + 1 : s.stop].all(0) & (len(s) > 1)
        return segments, still, like

    def left(self, part: Part, score: Tensor) -> tuple[Tensor, Tensor]:
        if not part.still:
            chosen = (rank(score[None])[0] < part.count).nonzero()[:, 0]
            return chosen, part.values[chosen]
        centre, joins = peaks(part.values.detach(), part.count, min(NEAREST, part.count))
        member = F.one_hot(joins, len(centre)).T.to(part.values)
        member[:, centre] = 0
        size = member.sum(1, keepdim=True)
        own = part.values[centre]
        mean = (member @ part.values) / size.clamp(min=1)
        return centre, torch.where(size > 0, self.own * own + (1 - self.own) * mean, own)

    def prune(self, tokens: TokenSequence, context: Context, count: Tensor) -> TokenSequence:
        score = context.attention_rows[self.layer - 1]
        stays = (rank(score.masked_fill(~tokens.visual, -1)) < count[:, None]) & tokens.visual
        (index, real), (row, _) = tokens.images, tokens.frames
        hidden, best = tokens.visual_hidden().float(), stays.flatten()[index] & real
        values = hidden.clone()
        for video in row.unique().tolist():
            own = (row == video)[:, None] & real
            values[own & best] = joined(hidden[own & best], hidden[own & ~best])
        return tokens.rewrite(values, best & (values != hidden).any(-1)).keep(stays | ~tokens.visual)

    def own_flops(self, text: int) -> float:
        first = self.first or 0
        return 4.0 * (first - (self.tokens or 0)) * (self.tokens or 0) * self.shape.width * self.acts


def most_saving(repeats: Tensor) -> list[range]:
    """The segments of F frames in which the most tokens can merge; repeats [F − 1, N]: which are as the one before."""
    rest = repeats.cpu()
    runs = [rest[b:].cumprod(0).sum(1).tolist() for b in range(len(rest) + 1)]  # [b][e − b − 1]: repeat in b + 1 … e
    saved, starts = [0], [0]  # of the frames before e; where the last segment that ends there begins
    for e in range(len(runs)):
        gains = [saved[b] + (e - b) * runs[b][e - b - 1] if b < e else saved[e] for b in range(e, -1, -1)]
        saved.append(max(gains))
        starts.append(e - gains.index(saved[-1]))
    segments, stop = list[range](), len(runs)
    while stop:
        segments.append(range(starts[stop], stop))
        stop = starts[stop]
    return segments[::-1]


def joined(kept: Tensor, rest: Tensor) -> Tensor:
    """[K, D]: what kept [K, D] become when each of rest [R, D] in turn is averaged into the most similar one."""
    with torch.no_grad():
        similar = F.normalize(rest, dim=-1) @ F.normalize(kept, dim=-1).T
        joins = F.one_hot(similar.argmax(1), len(kept)).to(kept)  # [R, K]
        behind = joins.flip(0).cumsum(0).flip(0)  # how many join the same one from here on
        weight = (joins * 0.5**behind).T
        share = 0.5 ** joins.sum(0)[:, None]
    return share * kept + weight @ rest
