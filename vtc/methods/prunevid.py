"""PruneVid (arXiv 2412.16117): visual token pruning for efficient video large language models."""

from __future__ import annotations

from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.allowed import number
from vtc.interface import PLACES, Context, TokenSequence, layer_option, option
from vtc.interface.flops import next_layer_attention
from vtc.methods.peaks import peaks
from vtc.methods.scenes import Part, SceneMerger, shares

NEAREST = 7  # of a frame or a token, itself among them, in the authors' code


class PruneVid(SceneMerger):
    """Frames cluster into scenes, what is static in one merges over time, all of it in space; the question then prunes.

    A row's images are the frames of a video, in order.

    - Temporal segments: the frames, each the mean of its projected tokens, are clustered by density peaks (7 nearest)
      into ⌊γ·F⌋ clusters. Scenes are stretches of frames of one cluster: a cluster's longest ones stay (if longer than
      a frame); what is between them goes to the longer one of the two scenes beside it, to the earlier of equals.
    - A place of a scene is static where the cosine of its tokens, mean over all pairs of the scene's frames, is above
      τ: they merge into their mean, in the scene's first frame. All others are dynamic.
    - Spatial merging: the static tokens of each scene, and the dynamic ones of each frame, are clustered by density
      peaks (7 nearest). Each cluster becomes its mean, in the place of its centre.
    - Before layer K: the score of a token is the greatest attention that any head of any of the prompt's text tokens
      behind the video pays it in that layer (packed questions together). The same share of the static tokens of each
      scene and of the dynamic ones of each frame stays.

    The budget: `tokens` a frame are left in the end, exactly F · `tokens` of F frames, and `retained` times as many
    before layer K: `retained` is 1 / α. The authors cluster half of what is static or dynamic (where it is more than
    14 tokens), and so leave what a video comes to, 16 % on average. Here all of these parts shrink by the share that
    the budget needs, rounded so that they add up. Where merging over time leaves fewer, the tokens that are the least
    similar to the others of their scene stay themselves.

    The authors' layer K runs on all tokens, of which the later layers have the selected; here K, which ranks them, sees
    these alone. They then cut the caches of the layers up to K down to the selected as well, for what is decoded; here
    these layers keep what they saw in the prefill, so that decoding gives what a single pass would, and their cache is
    1 / α as large. They add noise of 1e-6 to densities, where here ties go to the earlier one; and put a scene's static
    tokens before its dynamic ones, where here they stand in the places of the first frame.

    Args:
        tokens: the mean over the frames; default: 16 % (what the authors' setting comes to).
    """

    name = "prunevid"
    about = "PruneVid: a scene's static tokens merge, clusters become means, the question prunes (arXiv 2412.16117)."
    reference = "test_prunevid.py::test_equals_the_equations_by_loops"
    incomparable = "the authors leave what a video comes to; here the budget is exact"
    needs = (PLACES,)
    default_share = 0.16
    reads_prompt = True
    layer: int = layer_option(10, "K: before this decoder layer `tokens` are left", lowest=1, reads=0)
    retained: float = option(
        2.5, "1 / α: times `tokens` are left before the LLM", allowed=number("a number from 1 on", least=1)
    )
    threshold: float = option(0.8, "τ, of a static place", allowed=number("-1 to 1", least=-1, most=1))
    segments: float = option(0.25, "γ, clusters a frame", allowed=number("0 to 1", least=0, most=1))

    def scenes(self, frames: Tensor, real: Tensor) -> tuple[list[range], Tensor, Tensor]:
        whole = (frames * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        count = max(1, int(self.segments * len(frames)))
        scenes = stretches(peaks(whole, count, NEAREST)[1].tolist())
        unit, still = F.normalize(frames, dim=-1), torch.zeros_like(real)
        like = torch.ones(real.shape, device=real.device)
        for s in (s for s in scenes if len(s) > 1):
            own = unit[s.start : s.stop]
            like[s.start : s.stop] = ((own * own.sum(0)).sum(-1) - 1) / (len(s) - 1)
            still[s.start : s.stop] = real[s.start : s.stop].all(0) & (like[s.start : s.stop].mean(0) > self.threshold)
        return scenes, still, like

    def left(self, part: Part, score: Tensor) -> tuple[Tensor, Tensor]:
        centre, joins = peaks(part.values.detach(), part.count, NEAREST)
        size = torch.bincount(joins, minlength=len(centre))[:, None]
        return centre, torch.zeros_like(part.values[centre]).index_add(0, joins, part.values) / size

    def prune(self, tokens: TokenSequence, context: Context, count: Tensor) -> TokenSequence:
        score = context.next_layer_attention(tokens, queries=context.prompt(tokens), greatest=True)
        (index, real), (row, _) = tokens.images, tokens.frames
        part, kept = torch.zeros_like(index), torch.zeros_like(real)
        part[real] = context.memo["parts"].to(real.device)
        for video in row.unique().tolist():
            own = (row == video)[:, None] & real
            order = score.flatten()[index[own]].argsort(descending=True, stable=True)
            member = F.one_hot(part[own][order])
            share = shares(member.sum(0).tolist(), int(count[video]))
            stays = (member.cumsum(0) <= torch.tensor(share, device=real.device)) & member.bool()
            kept[own] = torch.zeros_like(order, dtype=torch.bool).scatter(0, order, stays.any(1))
        return tokens.keep_visual(kept)

    def own_flops(self, text: int) -> float:
        return next_layer_attention(self.shape, (self.first or 0) + text, text) * self.acts


def stretches(cluster: list[int]) -> list[range]:
    """The scenes of frames that belong to these clusters."""
    runs = [list(run) for _, run in groupby(range(len(cluster)), cluster.__getitem__)]
    longest: dict[int, int] = {}
    for run in runs:
        longest[cluster[run[0]]] = max(len(run), longest.get(cluster[run[0]], 2))
    scene = [-1] * len(cluster)  # -1: of none as yet
    for run in runs:
        if len(run) == longest[cluster[run[0]]]:
            scene[run[0] : run[-1] + 1] = [cluster[run[0]]] * len(run)
    for gap in [list(run) for none, run in groupby(range(len(scene)), lambda t: scene[t] < 0) if none]:
        before, behind = leading(scene[: gap[0]][::-1]), leading(scene[gap[-1] + 1 :])
        beside = before if len(before) >= len(behind) else behind
        scene[gap[0] : gap[-1] + 1] = [beside[0] if beside else 0] * len(gap)
    same = [list(run) for _, run in groupby(range(len(scene)), scene.__getitem__)]
    return [range(run[0], run[-1] + 1) for run in same]


def leading(labels: list[int]) -> list[int]:
    """The equal ones at the beginning."""
    return next((list(run) for _, run in groupby(labels)), [])
