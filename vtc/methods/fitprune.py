"""FitPrune (arXiv 2409.10197): a pruning recipe that is fitted to attention, a few tokens in every layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vtc.errors import UserError
from vtc.interface import ATTENTION, Compressor, Context, TokenSequence, keep_best, option
from vtc.methods.recipes import Recipes, fitted_to, recipes_of, unfitted

EXAMPLE = 127 / 576  # what the authors' recipe for 60 % fewer FLOPs leaves
WHOLE = 2**20  # shares are counted in whole parts of it, so that they come to the same number of tokens on any device


class FitPrune(Compressor):
    """In every layer drops the visual tokens to which neither the image nor the question attends; how many, a recipe
    says that was fitted beforehand.

    Behind layer l−1 visual token j is rated by self_j · cross_j: of the attention that this layer has just paid, the
    greatest over the heads, mean over the visual tokens and over the prompt's text behind the image. The lowest go
    before layer l, and the others keep their order and positions. The authors drop them inside layer l−1, between its
    attention and its MLP; nothing reads what that MLP makes of them, so that everything else comes out alike.

    A recipe says for each layer which share of all drops is done before it, so that exactly `tokens` are left in the
    end of an image of any size; the authors' is a number of tokens for each layer, of 576. A file may have recipes for
    several budgets, between which shares are interpolated. `action=calibrate` fits one (`vtc.methods.fitting`). Where
    none is given, it is the backbone's own in benchmarks/fitprune (LLaVA-1.5 7B's are the ten that the authors state,
    with which the numbers of tokens are theirs). On a backbone without one, runs are refused; `recipe=llava15_7b` takes
    the authors' there, each layer those of its relative depth, as a method that is made without a run does.

    Text counts as far as it is the prompt's (theirs: all that is there in the prefill), and several images of a row are
    rated by the visual tokens of all of them that see them.

    Args:
        tokens: default: what the recipe leaves; of several recipes 127 of 576 (the authors' example, 60 % fewer FLOPs).
    """

    name = "fitprune"
    about = "FitPrune: drops what image and question attend to least, by a recipe for each layer (arXiv 2409.10197)."
    reference = "test_fitprune.py::test_equals_masks_over_what_image_and_question_attend_to_least"
    needs = (ATTENTION,)
    reads_prompt = True
    recipe: Recipes = option(
        None,
        "file of action=calibrate; null: what comes for the backbone; llava15_7b: the authors', scaled in depth",
        file="benchmarks/fitprune",
        resolve=recipes_of,
    )

    def default_tokens(self) -> int | None:
        full, single = self.shape.visual_tokens, len(self.recipe.recipes) == 1
        share = self.recipe.recipes[0].left if single else EXAMPLE
        return None if full is None else max(1, round(full * share))

    def prepare(self) -> None:
        if self.shape.depth < 2:
            raise UserError(f"method={self.name}: it prunes behind a layer, and {self.shape.name} has no other")
        full = self.shape.visual_tokens
        left = self.tokens / full if self.tokens and full else EXAMPLE
        self.parts = [round(share * WHOLE) for share in self.recipe.shares(left)]

    def lacking(self) -> str | None:
        return None if self.options.get("recipe") is not None or fitted_to(self.shape) else unfitted(self.shape)

    def layers(self) -> set[int]:
        if self.tokens is None:
            return set()
        return {layer for layer in range(1, len(self.parts)) if self.parts[layer] > self.parts[layer - 1]}

    def probes(self) -> set[int]:
        return {layer - 1 for layer in self.layers()}

    def dropped(self, surplus: Any, layer: int) -> Any:
        """How many of the tokens that go in the end, an int or a tensor of them, are gone before this layer."""
        return (surplus * self.parts[layer] + WHOLE // 2) // WHOLE

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        if self.tokens is None or tokens.fits(self.tokens):
            return tokens
        full = context.memo.setdefault("fitprune", tokens.images[1].sum(1))
        gone = self.dropped((full - self.tokens).clamp(min=0), layer)
        return keep_best(tokens, self.rate(tokens, context), full - gone)

    def rate(self, tokens: TokenSequence, context: Context) -> Tensor:
        """[B, L], higher is better."""
        own, cross = attention(tokens, context)
        return own * cross

    def layer_tokens(self) -> list[int]:
        full = self.shape.visual_tokens or 0
        surplus = 0 if self.tokens is None else max(0, full - self.tokens)
        return [full - self.dropped(surplus, layer) for layer in range(self.shape.depth)]

    def own_flops(self, text: int) -> float:
        if not self.acts:
            return 0.0
        width, seen = self.shape.heads * self.shape.head_width, self.layer_tokens()
        before = [seen[layer - 1] for layer in self.layers()]
        # The scores of the last token, which are probed, and of all tokens, where there is one that is yet to go.
        queries = [1 + (n + text if n > (self.tokens or 0) else 0) for n in before]
        return sum(2.0 * (n + text) * rows * width for n, rows in zip(before, queries, strict=True))


def attention(tokens: TokenSequence, context: Context) -> tuple[Tensor, Tensor]:
    """(self, cross), [B, L] each: what the visual tokens and what the prompt's text paid to each token in the layer
    that has just run, of each of them the greatest over the heads, mean over them."""
    own, cross = context.last_layer_attention(tokens.visual, context.prompt(tokens))
    return own, cross
