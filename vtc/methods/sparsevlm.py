"""SparseVLM (arXiv 2410.04417): visual token sparsification for efficient vision-language model inference."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor

from vtc.allowed import number
from vtc.interface import Compressor, Context, TokenSequence, layer_option, merge_images, option, rank, readable
from vtc.interface.flops import next_layer_attention
from vtc.methods.pyramiddrop import pyramid, remaining, stages_of


class SparseVLM(Compressor):
    """The words that are about the image rate its tokens; the lowest are dropped in steps, some of them recycled.

    Raters (section 3.2): the text tokens q behind the image whose relevance, the mean over the visual tokens v of
    softmax_q(H_v · H_q), is above the mean of them all, by the embeddings before the LLM. (Packed questions rate
    together.) Before layers 2, 6 and 15
    (of 32) a visual token's score is the attention that the raters pay it in the layer about to run, mean over heads
    and raters. Of the tokens that are dropped, the best `recycle` are clustered by density peaks (each cluster around a
    token that has close neighbours and is far from denser ones) and each cluster goes on as one token, the mean of its
    members.

    Ours, for an exact budget (the authors keep fixed counts and add the recycled ones; the paper's rule by the rank of
    the attention matrix is not in their code): numbers fall by the same share at each step, as in PyramidDrop, to
    `tokens` at the end, recycled ones among them: one for ten recycled tokens, as theirs, but never more than half of
    what is left. The layer that rates sees the reduced tokens already (theirs, the next one). Means, as in
    the authors' code: a sum of hidden states is none that the LLM knows. A token stands at the place of its cluster's
    first member. With nothing recycled (`recycle` of 0) pocket's mean at 16 tokens is -0.001 apart, [-0.005, +0.003].

    Args:
        tokens: default: a fifth of the visual tokens (115 of 576; the authors' 192 on average end at 113).
    """

    name = "sparsevlm"
    about = "SparseVLM: words about the image rate its tokens; some dropped ones merge and return (arXiv 2410.04417)."
    reference = "test_sparsevlm.py::test_a_step_keeps_merges_and_drops"
    incomparable = "the authors keep fixed counts and add what is recycled; here the budget is exact"
    default_share = 1 / 5
    reads_prompt = True
    stage_layers: Sequence[int] = layer_option(
        (2, 6, 15), "before these decoder layers; the last one leaves `tokens`", name="layers", reads=0
    )
    recycle: float = option(
        0.3, "share of the dropped tokens that return, one for ten", allowed=number("from 0 to 1", least=0, most=1)
    )

    def prepare(self) -> None:
        self.stages = stages_of(self.stage_layers, self.shape.depth, self.layer_scale, among=readable(self.shape, 0))

    def layers(self) -> set[int]:
        return set() if self.tokens is None else {0, *self.stages}

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        if tokens.fits(self.tokens):
            return tokens
        index, real = tokens.images
        if layer == 0:
            chosen = raters(tokens, context.prompt(tokens))
            context.memo["raters"] = torch.zeros_like(chosen).scatter(1, tokens.origin, chosen)
        if layer not in self.stages:
            return tokens
        rating = context.memo["raters"].gather(1, tokens.origin.clamp(min=0)) & (tokens.origin >= 0) & tokens.mask
        rating = torch.where(rating.any(1, keepdim=True), rating, context.prompt(tokens))
        score = context.next_layer_attention(tokens, queries=rating).flatten()[index]
        place = rank(score.masked_fill(~real, float("-inf")))

        plan = [self._plan(n, self.stages[layer]) for n in real.sum(1).tolist()]
        kept, recycled, clusters = torch.tensor(plan, device=real.device).T[..., None]
        again = (place >= kept) & (place < kept + recycled) & real
        few = (~again).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(1, *(n for _, n, _ in plan))]
        points = tokens.visual_hidden().take_along_dim(few[..., None], 1)
        groups = torch.full_like(place, -1).scatter(1, few, density_peaks(points, again.gather(1, few), clusters))
        stays = ((place < kept) & real) | again
        left = tokens.keep_visual(stays)
        order = (~stays).to(torch.uint8).argsort(dim=1, stable=True)[:, : left.images[0].shape[1]]
        return merge_images(left, groups.gather(1, order))

    def _plan(self, length: int, part: float) -> tuple[int, int, int]:
        """Of `length` tokens: how many are kept, how many recycled, into how many."""
        left = remaining(length, self.tokens or length, part)
        clusters = min(ceil(self.recycle * (length - left) / 10), left // 2)
        recycled = max(clusters, round(self.recycle * (length - left + clusters))) if clusters else 0
        return left - clusters, recycled, clusters

    def layer_tokens(self) -> list[int]:
        return pyramid(self.tokens, self.shape, self.stages)

    def own_flops(self, text: int) -> float:
        entering, length = [self.shape.visual_tokens or 0, *self.layer_tokens()], (self.shape.visual_tokens or 0) + text
        rating = sum(next_layer_attention(self.shape, entering[layer] + text, text) for layer in self.stages)
        return (2.0 * length**2 * self.shape.width + rating) * self.acts


@torch.no_grad()
def raters(tokens: TokenSequence, text: Tensor) -> Tensor:
    """[B, L] bool: which of the tokens `text` [B, L] are more about the row's images than their mean."""
    hidden = tokens.hidden.float()
    match = (hidden @ hidden.transpose(1, 2)).masked_fill(~text[:, None], float("-inf")).softmax(2)
    visual = tokens.visual[..., None]
    relevance = (match * visual).sum(1) / visual.sum(1).clamp(min=1)
    mean = (relevance * text).sum(1, keepdim=True) / text.sum(1, keepdim=True)
    above = text & (relevance > mean)
    return torch.where(above.any(1, keepdim=True), above, text)


@torch.no_grad()
def density_peaks(points: Tensor, real: Tensor, count: Tensor) -> Tensor:
    """[I, N]: clusters of the real points by density peaks over nearest neighbours; -1 elsewhere.

    The density of point i is exp(−mean of d² to its k nearest), itself among them, with distances divided by √D and k =
    the number of clusters (as the authors' code has it). Centres are the points with the highest density · distance to
    the nearest denser one (for the densest: to the farthest of all); the others join the nearest centre.

    Args:
        points: [I, N, D]. real: [I, N] bool. count: [I, 1] clusters, no more than real points.
    """
    far = float("inf")
    distance = torch.cdist(points.float(), points.float(), compute_mode="donot_use_mm_for_euclid_dist")
    distance = (distance / points.shape[2] ** 0.5).masked_fill(~(real[:, None] & real[..., None]), far)
    number = torch.arange(real.shape[1], device=real.device)
    near = distance.sort(2).values.masked_fill(number >= count[..., None], 0)
    density = (-near.square().sum(2) / count.clamp(min=1)).exp().masked_fill(~real, 0)
    denser = (density[:, None] > density[..., None]) | (
        (density[:, None] == density[..., None]) & (number < number[:, None])
    )
    widest = distance.masked_fill(distance == far, 0).amax((1, 2))[:, None]
    peak = distance.masked_fill(~denser, far).amin(2)
    score = (density * torch.where(peak == far, widest, peak)).masked_fill(~real, -1)
    place = rank(score)
    centre = (place < count) & real
    cluster = distance.masked_fill(~centre[:, None], far).argmin(2)  # the place of its centre
    cluster = torch.where(centre, number, cluster)
    return place.gather(1, cluster).masked_fill(~real, -1)
