"""MMTok (arXiv 2508.18264): multimodal coverage maximization."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.allowed import number
from vtc.interface import Condensed, Context, TokenSequence, TowerCompressor, TowerUse, option
from vtc.interface.tower import View
from vtc.methods.divprune import take_best


class MMTok(TowerCompressor):
    """Keeps the visual tokens that together cover the question's words and the image best, found greedily.

    With v_j the visual tokens as the LLM reads them, t_i the embeddings of the m words of the prompt behind the image
    and f_j what the projector reads of the tower (section 3):

        P_ij = softmax_j(cos(t_i, v_j) / τ_t) / m,   Q_uj = softmax_j(cos(f_u, f_j) / τ_v) / n,

    a set S of the n visual tokens covers Σ_i max_{j in S} P_ij + α Σ_u max_{j in S} Q_uj. From nothing on, the token
    that adds most joins S, until `tokens` are in it; ties go to the earlier one. All are kept in raster order.

    The authors take the words of the question that are no stop words, without the benchmarks' instructions ("Answer the
    question using a single word or phrase."), and the whole question on Qwen2.5-VL; here it is all of the prompt's text
    behind the image, as for every method. Their options to have a small model answer first and to leave out padded
    borders are not here. On tiles each has its share of the budget and covers itself and the question.

    Any budget from 1 on.

    Args:
        tokens: default: a ninth (64 of 576).
    """

    name = "mmtok"
    about = "MMTok: visual tokens that cover the question's words and the image best (arXiv 2508.18264)."
    reference = "test_mmtok.py::test_equals_the_paper_by_loops"
    default_share = 1 / 9
    reads_prompt = True
    tower_layer = -1  # no layer is read, but what is projected
    # These three as in the authors' code.
    alpha: float = option(0.5, "weight of covering the image", allowed=number("a number from 0 on", least=0))
    text_temperature: float = option(0.02, "τ_t", allowed=number("a number above 0", above=0))
    image_temperature: float = option(0.2, "τ_v", allowed=number("a number above 0", above=0))

    def tower(self) -> TowerUse:
        return TowerUse()

    @torch.no_grad()
    def condense_view(self, view: View, tokens: TokenSequence, context: Context) -> Condensed:
        assert view.count is not None
        row, _ = tokens.frames
        seen = F.normalize(tokens.visual_hidden()[view.image[:, None], view.token].float(), dim=-1)
        words, text = words_of(tokens, context)
        words, text = words[row[view.image]], text[row[view.image]]
        p = (words @ seen.transpose(1, 2) / self.text_temperature).softmax(2) * text[..., None]
        features = F.normalize(view.tower.patch_features().float(), dim=-1)
        q = (features @ features.transpose(1, 2) / self.image_temperature).softmax(2)
        p, q = p / text.sum(1).clamp(min=1)[:, None, None], self.alpha * q / q.shape[1]
        return Condensed(best_cover(torch.cat([p, q], 1), view.count))

    def own_flops(self, text: int) -> float:
        n = self.shape.visual_tokens or 0
        return (2.0 * n**2 * self.shape.vision.width + 2.0 * n * text * self.shape.width) * self.acts  # cosines


def words_of(tokens: TokenSequence, context: Context) -> tuple[Tensor, Tensor]:
    """The prompt's words of each row at unit length [B, M, D], and which of them there are [B, M]."""
    text = context.prompt(tokens)
    count = text.sum(1)
    first = text.byte().argsort(dim=1, descending=True, stable=True)[:, : int(count.max())]
    words = F.normalize(tokens.hidden.take_along_dim(first[..., None], 1).float(), dim=-1)
    return words, torch.arange(words.shape[1], device=count.device) < count[:, None]


def best_cover(cover: Tensor, count: int) -> Tensor:
    """[J, n] bool: `count` columns of cover [J, R, n] ≥ 0, each that which adds most to Σ over rows of maxima."""
    best = cover.new_zeros(cover.shape[:2])
    rank, left = torch.zeros_like(cover[:, 0]), torch.ones_like(cover[:, 0], dtype=torch.bool)
    for pick in range(count):
        gain = (cover - best[..., None]).clamp(min=0).sum(1)
        chosen = take_best(gain, left, rank, count - pick)
        best = torch.maximum(best, cover.take_along_dim(chosen[:, None], 2)[..., 0])
    return ~left
