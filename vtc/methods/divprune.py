"""DivPrune (arXiv 2503.02175): diversity-based visual token pruning."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.interface import Context, TokenPruner, TokenSequence, layer_option


class DivPrune(TokenPruner):
    """Keeps the subset of an image's visual tokens whose smallest pairwise distance is largest, found greedily.

    The max-min diversity problem (section 3): max over subsets S of min over i, j in S of d(i, j), with the distance
    d(i, j) = 1 − cos(e_i, e_j) of the projected tokens. The first pick is the token whose nearest neighbour is farthest
    (as the authors' code does it), each further one the token that is farthest from its nearest among those picked.
    What is kept stands in raster order. It looks at the image alone, so it is the same for any question, and needs no
    attention.

    Exactly `tokens` are kept, where the authors round a ratio.

    Args:
        tokens: default: 9.8 % of the visual tokens, the paper's headline (56 of 576).
    """

    name = "divprune"
    about = "DivPrune: keeps visual tokens that are far from each other, before the LLM (arXiv 2503.02175)."
    reference = "test_divprune.py::test_keeps_what_the_greedy_search_finds"
    default_share = 0.098
    # Before a later layer it compares hidden states.
    layer: int = layer_option(0, "before this decoder layer; 0: before the LLM, as in the paper")

    def score(self, tokens: TokenSequence, context: Context) -> Tensor:
        _, real = tokens.images
        return tokens.per_token(farthest_first(tokens.visual_hidden(), real, self.tokens or real.shape[1]))

    def own_flops(self, text: int) -> float:
        n = self.shape.visual_tokens or 0
        return 2.0 * n**2 * self.shape.width * self.acts  # cosines


@torch.no_grad()
def farthest_first(points: Tensor, real: Tensor, count: int) -> Tensor:
    """[I, N]: `count` for the first pick, down to 1 for the last, 0 for the others. Ties go to the earlier token.

    Args:
        points: [I, N, D]; their cosines count.
        real: [I, N] bool. Of an image with fewer than `count`, all real ones are picked.
    """
    unit = F.normalize(points.float(), dim=-1)
    distance = 1 - unit @ unit.transpose(1, 2)
    distance = torch.maximum(distance, distance.transpose(1, 2))  # equal both ways, whatever was rounded
    distance = distance.masked_fill(~real[:, None], float("inf"))
    distance.diagonal(dim1=1, dim2=2).fill_(float("inf"))
    nearest = distance.amin(2)  # to any other token at first, then to those picked
    rank, left = torch.zeros_like(nearest), real.clone()
    for pick in range(count):
        best = take_best(nearest, left, rank, count - pick)
        row = distance.gather(1, best[..., None].expand(-1, -1, distance.shape[2]))[:, 0]
        nearest = row if pick == 0 else torch.minimum(nearest, row)
    return rank


def take_best(value: Tensor, left: Tensor, rank: Tensor, number: int) -> Tensor:
    """[I, 1]: of the tokens `left` [I, N] bool the one of the greatest value, which leaves them and has this number in
    `rank` [I, N]; any token of an image that has none left."""
    best = value.masked_fill(~left, float("-inf")).argmax(1, keepdim=True)
    rank.scatter_(1, best, torch.where(left.gather(1, best), number, rank.gather(1, best)))
    left.scatter_(1, best, False)
    return best
