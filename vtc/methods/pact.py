"""PACT (arXiv 2504.08966): pruning and clustering-based token reduction for faster visual language models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.allowed import number
from vtc.interface import Compressor, Context, TokenSequence, layer_option, merge_images, option, rank

HALVINGS = 20  # of the interval in which the cutoff lies: cosine distances are told apart to 2e-6
WIDTH = 2.0  # of the kernel of the density, as in the authors' code


class PACT(Compressor):
    """Before layer K unimportant visual tokens are set aside, similar ones merge, and what was set aside near a merged
    token joins it.

    EUTI: the importance of token i is the mean over heads of softmax(k_i · mean of all q), with queries
    and keys of layer K before their rotation, times the norm of the hidden state. The share `keep` with the highest
    goes on. DBDPC, with distances 1 − cosine of the rotated keys of all heads: the density of a token is
    Σ exp(−(d / 2)²) over these tokens; from the densest on, whichever is farther than the cutoff d_c from every centre
    so far becomes a centre; each of the others joins the nearest one. Retrieval: of the tokens set aside
    those within `alpha` · d_c of their nearest centre join it too, the others are gone. A cluster becomes the mean of
    its hidden states, in the place and at the position of its centre, and attention to it is proportional,
    softmax(q k^T / √d + log size), in this layer and all that follow, while decoding too (needs attention=sdpa or
    eager).

    Ours, for an exact budget (the authors give d_c, which leaves as many tokens as an image has clusters): d_c is what
    20 halvings of [0, 2] find, always towards the side that leaves no more than `tokens` centres; where it leaves
    fewer, the tokens farthest from their centres become centres one by one, so that no token is farther than d_c from
    its centre. A budget above the share `keep` keeps as many tokens as it says. Each image by itself: the authors' code
    takes all images of a row together, and the text before them into the mean of the queries and the softmax too.

    Args:
        tokens: default: two sevenths of the visual tokens (71.4 % gone, the paper's comparison at 71.3 %).
    """

    name = "pact"
    about = "PACT: sets unimportant visual tokens aside, merges similar ones by their keys (arXiv 2504.08966)."
    reference = "test_pact.py::test_equals_the_equations_by_loops"
    incomparable = "the authors fix the distance within a cluster; here the number of clusters is exact"
    default_share = 2 / 7
    layer: int = layer_option(4, "before this decoder layer, by its own queries and keys", lowest=1, reads=0)
    keep: float = option(
        0.55,
        "share of the tokens that are important, to be clustered",
        allowed=number("above 0, to 1", above=0, most=1),
    )
    alpha: float = option(
        1.5,
        "how many cutoffs from its centre a token set aside may be, to join it",
        allowed=number("0 or more", least=0),
    )
    proportional: bool = option(True, "false: attention counts a merged token once")

    def layers(self) -> set[int]:
        return {self.layer}

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        if self.tokens is None or tokens.fits(self.tokens):
            return tokens
        index, real = tokens.images
        with torch.no_grad():
            queries, keys, rotated = (t.flatten(0, 1)[index] for t in context.next_layer_states(tokens))
            score = importance(queries, keys, real) * tokens.visual_hidden().float().norm(dim=-1)
            count = real.sum(1, keepdim=True).clamp(max=self.tokens)
            kept = rank(score.masked_fill(~real, float("-inf"))) < important(real, self.keep).maximum(count)
            unit = F.normalize(rotated.flatten(2).double(), dim=-1)
            distance = (1 - unit @ unit.transpose(1, 2)).clamp(0, 2)
            centre, cutoff = centres(distance, kept & real, count)
            near, group = distance.masked_fill(~centre[:, None], float("inf")).min(2)
            group = torch.where(centre, torch.arange(real.shape[1], device=group.device), group)  # a centre's own twin
            joins = real & (kept | (near <= self.alpha * cutoff))
            group = (centre.cumsum(1) - 1).gather(1, group)
        left = tokens.keep_visual(joins)
        order = (~joins).to(torch.uint8).argsort(dim=1, stable=True)[:, : left.images[0].shape[1]]
        return merge_images(left, group.gather(1, order), None, centre.gather(1, order), self.proportional)

    def own_flops(self, text: int) -> float:
        n, shape = self.shape.visual_tokens or 0, self.shape
        projected = 2.0 * (n + text) * shape.width * (shape.query_width + shape.kv_heads * shape.head_width)
        return (projected + 2.0 * n * n * shape.kv_heads * shape.head_width) * self.acts


def importance(queries: Tensor, keys: Tensor, real: Tensor) -> Tensor:
    """[I, N]: the mean over heads of softmax(k_i · mean of the queries) over an image's tokens.

    Args:
        queries: [I, N, H, d]. keys: [I, N, Hkv, d]. real: [I, N] bool.
    """
    total = (queries.float() * real[..., None, None]).sum(1) / real.sum(1).clamp(min=1)[:, None, None]
    keys = keys.repeat_interleave(queries.shape[2] // keys.shape[2], 2).float()
    logits = (keys * total[:, None]).sum(3).masked_fill(~real[..., None], float("-inf"))
    return logits.softmax(1).mean(2)


def important(real: Tensor, share: float) -> Tensor:
    """[I, 1]: how many of an image's tokens this share of them is, at least one."""
    return (real.sum(1, keepdim=True).double() * share).floor().long().clamp(min=1)


def centres(distance: Tensor, kept: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """[I, N] bool, exactly `count` centres among the tokens `kept` of each image, and [I, 1] the cutoff.

    Args:
        distance: [I, N, N]. kept: [I, N] bool. count: [I, 1], no more than are kept.
    """
    density = (-(distance / WIDTH).square()).exp().masked_fill(~kept[:, None], 0).sum(2).masked_fill(~kept, -1)
    place = rank(density)
    denser = place[:, None] < place[..., None]  # [I, N, N]: the second is the denser one
    low, high = distance.new_zeros(count.shape), distance.new_full(count.shape, 2.0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        more = bounded(distance <= middle[..., None], denser, kept).sum(1, keepdim=True) > count
        low, high = torch.where(more, middle, low), torch.where(more, high, middle)
    centre = bounded(distance <= high[..., None], denser, kept)
    while bool((lacking := centre.sum(1, keepdim=True) < count).any()):
        far = distance.masked_fill(~centre[:, None], float("inf")).amin(2).masked_fill(~kept | centre, -1)
        centre = centre.scatter(1, far.argmax(1, keepdim=True), lacking | centre.gather(1, far.argmax(1, keepdim=True)))
    return centre, high


def bounded(near: Tensor, denser: Tensor, kept: Tensor) -> Tensor:
    """[I, N] bool: the centres that a walk from the densest token to the thinnest chooses, each near no centre before.

    A token becomes a centre once all denser ones near it are decided, none of them as a centre: many at once.

    Args:
        near, denser: [I, N, N] bool. kept: [I, N] bool, the tokens that there are.
    """
    near = near & denser
    centre, open_ = torch.zeros_like(kept), kept
    while bool(open_.any()):
        new = open_ & ~(near & open_[:, None]).any(2)
        centre = centre | new
        open_ = open_ & ~new & ~(near & new[:, None]).any(2)
    return centre
