"""VScan (arXiv 2505.22654): rethinking visual token reduction in two stages."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.allowed import number, whole
from vtc.errors import UserError
from vtc.interface import (
    BackboneShape,
    Condensed,
    Context,
    TokenSequence,
    TowerCompressor,
    TowerUse,
    keep_best,
    layer_option,
    option,
    rank,
    resolve_tower_layer,
)
from vtc.interface.flops import next_layer_attention
from vtc.interface.tower import View


def local_layer_of(layer: int | None, shape: BackboneShape) -> int:
    """A user's local layer as an index from 0; None: 6 of 24 layers, counted from 1, scaled to the tower's depth."""
    if layer is None:
        return max(0, round(shape.vision.depth / 4) - 1)
    try:
        return resolve_tower_layer(layer, shape)
    except UserError as error:
        raise UserError(str(error).replace("tower_layer", "local_layer")) from None


class VScan(TowerCompressor):
    """Global and local patches, into which the others are merged, before the LLM; text-guided pruning in its middle.

    Before the LLM (section 4.1) M = `retained` · `tokens` visual tokens stay. Local scan: the picture is cut into
    windows of 6 × 6 tokens, and M / 2 tokens, rounded down, have the greatest CLS attention (mean over heads) of a
    shallow layer, but equally many in each window. Global scan: of all others those with the greatest CLS attention in
    the layer that is projected, until there are M. Each token that is not among them joins the most similar that is
    (cosine of the projected tokens), which becomes the mean of itself and all that joined it, in its own place.

    Before decoder layer K (section 4.2) the `tokens` stay to which the last instruction token attends most in the layer
    about to run, mean over heads, as PyramidDrop does.

    By default 3 · `tokens` are left for half of the decoder: 96, then 32 from layer 16 of 32 on, 64 on average, the
    authors' setting for LLaVA-1.5. Windows follow their code for Qwen2.5-VL, which on LLaVA-1.5 gives what their code
    for it does: no window gives more than ⌈M / 2 / windows⌉, and rows and columns that fill no window belong to the
    last; there a window is 4 × 4 (`window=4`), and what windows can't give the global scan does. Tokens keep their
    positions in the LLM; the authors number them anew, which `renumber` does (not where positions are a grid). On tiles
    each has its share of M and its own windows. Without CLS, attention is what each patch receives. Any budget from 1
    on.

    Args:
        tokens: what is left at the end; default: an eighteenth (32 of 576).
    """

    name = "vscan"
    about = "VScan: globally and locally attended patches absorb the others, then the LLM's middle prunes (2505.22654)."
    reference = "test_vscan.py::test_the_first_stage_equals_the_paper_by_loops"
    default_share = 1 / 18
    spatial = True
    reads_prompt = True
    layer: int = layer_option(16, "before this decoder layer `tokens` are left", lowest=1, reads=0)
    retained: float = option(
        3.0, "times `tokens` are left before the LLM", allowed=number("a number from 1 on", least=1)
    )
    local: float = option(0.5, "share of them by the local scan", allowed=number("0 to 1", least=0, most=1))
    window: int = option(6, "side of a window, in visual tokens", allowed=whole(1))
    local_layer: int = option(
        None, "the shallow layer, from 0; null: 6 of 24, counted from 1, scaled to the tower", resolve=local_layer_of
    )
    renumber: bool = option(False, "true: positions close up in the LLM too, as in the authors' code")

    def layers(self) -> set[int]:
        return {0, self.layer}

    def tower(self) -> TowerUse:
        return TowerUse(watch=frozenset({self.tower_layer, self.local_layer}))

    def leaves_of_tower(self) -> int | None:
        full = self.shape.visual_tokens
        left = None if self.tokens is None else round(self.tokens * self.retained)
        return left if left is None or full is None else min(left, full)

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        if layer == 0:
            return super().reduce(tokens, layer, context)
        if self.tokens is None or tokens.fits(self.tokens):
            return tokens
        _, real = tokens.images
        score = context.next_layer_attention(tokens)
        return keep_best(tokens.renumbered() if self.renumber else tokens, score, real.sum(1).clamp(max=self.tokens))

    def condense_view(self, view: View, tokens: TokenSequence, context: Context) -> Condensed:
        assert view.count is not None and view.tower.spots is not None
        shallow = view.tower.patch_attention(self.local_layer).mean(1)
        deep = view.tower.patch_attention(self.tower_layer).mean(1)
        local = most_in_windows(shallow, view.tower.spots, self.window, int(view.count * self.local))
        kept = rank(deep.double() + 2 * local) < view.count  # attention is 1 at most
        place = kept.nonzero()[:, 1].view(len(kept), -1)
        merged = absorbed(tokens.visual_hidden()[view.image[:, None], view.token], kept)
        return Condensed(kept, place, merged, projected=True)

    def layer_tokens(self) -> list[int]:
        full = self.shape.visual_tokens or 0
        first = self.leaves_of_tower()
        left = [full if first is None else first] * self.layer
        return left + [full if self.tokens is None else self.tokens] * (self.shape.depth - self.layer)

    def own_flops(self, text: int) -> float:
        first, full = self.leaves_of_tower() or 0, self.shape.visual_tokens or 0
        merging = 4.0 * (full - first) * first * self.shape.width
        return (merging + next_layer_attention(self.shape, first + text, 1)) * self.acts


def most_in_windows(attention: Tensor, spots: Tensor, side: int, count: int) -> Tensor:
    """[J, n] bool: the `count` greatest of attention [J, n] of which no window has more than an equal part."""
    corner = (spots - spots.amin(1, keepdim=True)) // side
    last = ((spots.amax(1) - spots.amin(1) + 1) // side).clamp(min=1) - 1  # [J, 2] what is over belongs to it
    row, column = torch.minimum(corner, last[:, None]).unbind(-1)
    windows = (last + 1).prod(1)
    order = attention.argsort(dim=1, descending=True, stable=True)
    member = F.one_hot((row * (last[:, 1:] + 1) + column).gather(1, order), int(windows.max()))
    place = (member.cumsum(1) * member).sum(2)  # in its window, from 1
    fits = place <= (count + windows - 1)[:, None] // windows[:, None]
    chosen = fits & (fits.cumsum(1) <= count)
    return torch.zeros_like(chosen).scatter(1, order, chosen)


def absorbed(values: Tensor, kept: Tensor) -> Tensor:
    """[J, K, D]: of values [J, n, D] the kept ones, equally many each, as means of themselves and those nearest to
    them."""
    own, rest = values[kept].view(len(kept), -1, values.shape[2]), values[~kept].view(len(kept), -1, values.shape[2])
    with torch.no_grad():
        similar = F.normalize(rest.float(), dim=-1) @ F.normalize(own.float(), dim=-1).transpose(1, 2)
        joins = F.one_hot(similar.argmax(2), own.shape[1]).to(values.dtype).transpose(1, 2)  # [J, K, n − K]
    return (own + joins @ rest) / (1 + joins.sum(2, keepdim=True))
