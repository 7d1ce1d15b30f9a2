"""What a compression method is: `Compressor`, and narrower bases of which a method overrides one verb.

A method says at which decoder layers it acts, which attention rows it needs there, and what it does to the tokens.
It never touches positions, masks, caches or padding: the verbs of `TokenSequence` keep those true, and `vtc.engine`
does the rest.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from vtc.errors import UserError
from vtc.interface.backbone import AttachableBackbone
from vtc.interface.context import Context
from vtc.interface.shape import BackboneShape
from vtc.interface.tokens import TokenSequence, keep_best, keep_best_of_rows, merge_images

if TYPE_CHECKING:
    from vtc.interface.tower import TowerUse

SUMMARY_PROMPT = "Summarize the image in a few words."  # Fwd2Bot, section 3.2


class Compressor(nn.Module):
    """A compression method. Holds its own parameters only, never the backbone.

    Class attributes:
        name: under which it is registered.
        needs_training: useless without trained weights.
        fixed_budget: trained weights hold for one number of tokens only.
        elastic: trained weights hold for every number of tokens that it offers; `tokens` may change at any time, and
            `training_budgets` says which ones a step of training is about.
        trained_options: options that trained weights hold for; a checkpoint of another value is refused.
        bottleneck: what follows an image sees of it only the tokens that the method put behind it: the mask hides each
            image's visual tokens from all but the image itself and those, in every layer, and they leave the cache
            when the prefill is over. Later tokens keep their positions. Not together with `probes` or `reads_prompt`.
        adapter: the LoRA adapter under which the LLM answers; None for the plain weights.
        reads_prompt: what is left of an image depends on the text behind it, by `Context.prompt` or
            `Context.next_layer_attention` (one that has `probes` need not say so).
        across_images: what is left of an image depends on the others of its row, and images differ in how much.

    Args:
        tokens: visual tokens per image that are left at the end; None keeps whatever there is.
        shape: the backbone's sizes.
    """

    name: ClassVar[str] = ""
    needs_training: ClassVar[bool] = False
    fixed_budget: ClassVar[bool] = False
    elastic: ClassVar[bool] = False
    trained_options: ClassVar[tuple[str, ...]] = ()
    bottleneck: ClassVar[bool] = False
    adapter: str | None = None
    reads_prompt: bool = False
    across_images: bool = False

    def __init__(self, tokens: int | None, shape: BackboneShape) -> None:
        super().__init__()
        self.tokens, self.shape = tokens, shape

    # -- what the engine asks
    def layers(self) -> set[int]:
        """Decoder layers before which it acts; 0 = before the LLM."""
        return set()

    def probes(self) -> set[int]:
        """Layers whose attention row of the last prompt token it needs."""
        return set()

    def tower(self) -> TowerUse | None:
        """What it needs of the vision tower, or changes in it; None leaves the tower alone and unwatched."""
        return None

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        """The tokens that `layer` gets to see."""
        return tokens

    # -- training
    def set_stage(self, step: int, total: int) -> None:
        """Schedules: optimizer step `step` (0-based) of `total` comes next."""

    def training_budgets(self, generator: random.Random) -> Sequence[int] | None:
        """The numbers of tokens at which the coming step's loss is taken, their mean; None: at `tokens` alone.

        Args:
            generator: seeded by the training's seed, the stage and the step: the same in every process and after a
                restart. What is drawn must be drawn from it.
        """
        return None

    def losses(self, context: Context) -> dict[str, Tensor]:
        """Losses beyond next-token prediction, after a training pass over `context`."""
        return {}

    def attach(self, backbone: AttachableBackbone) -> None:
        """Puts what it needs into the backbone (LoRA), or takes it from there (a tokenized prompt); idempotent."""

    @property
    def trained_for(self) -> int | None:
        """The number of tokens that its weights are for; None: for any. `tokens`, unless a method can use a part of
        them."""
        return None if self.elastic else self.tokens

    @property
    def extra_parameters(self) -> int:
        """Parameters that it adds to the backbone."""
        return sum(p.numel() for p in self.parameters())

    # -- budgets, without weights
    @classmethod
    def default_tokens(cls, shape: BackboneShape, **options: Any) -> int | None:
        """Tokens per image where the user gives no budget; None keeps whatever there is."""
        return None

    @classmethod
    def offers(cls, shape: BackboneShape, **options: Any) -> Sequence[int]:
        """The numbers of tokens per image that it can leave."""
        return range(1, (shape.visual_tokens or 0) + 1)

    @classmethod
    def layer_tokens(cls, tokens: int | None, shape: BackboneShape, **options: Any) -> list[int]:
        """Visual tokens (registers among them) that each decoder layer sees per image in the prefill that answers."""
        return [tokens if tokens is not None else shape.visual_tokens or 0] * shape.depth

    @classmethod
    def leaves(cls, tokens: int | None, shape: BackboneShape, **options: Any) -> BackboneShape:
        """The sizes that a method behind this one finds: fewer visual tokens, in no grid, at no fixed places."""
        if tokens is None or tokens == shape.visual_tokens:
            return shape
        return dataclasses.replace(shape, visual_tokens=tokens, grid=None, places=False)


def two_level(tokens: int | None, shape: BackboneShape, layer: int, extra: int = 0) -> list[int]:
    """`layer_tokens` of a method that acts once: all visual tokens (and `extra`) up to `layer`, then `tokens`."""
    full = shape.visual_tokens or 0
    return [full + extra] * layer + [full if tokens is None else tokens] * (shape.depth - layer)


class TokenPruner(Compressor):
    """Keeps the best visual tokens of each image, before one layer. Override `score`."""

    def __init__(self, tokens: int | None, shape: BackboneShape, layer: int) -> None:
        super().__init__(tokens, shape)
        self.layer = layer

    def layers(self) -> set[int]:
        return {self.layer}

    def score(self, tokens: TokenSequence, context: Context) -> Tensor:
        """[B, L], higher is better; only the visual tokens' scores are read. Ties go to the earlier token."""
        raise NotImplementedError

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        index, real = tokens.images
        if self.tokens is None or not index.numel() or (self.tokens >= index.shape[1]):
            return tokens
        return keep_best(tokens, self.score(tokens, context), real.sum(1).clamp(max=self.tokens))


class VideoPruner(TokenPruner):
    """Keeps the best visual tokens of a row's images together, the frames of a video in order. Override `score`.

    Before the LLM. `tokens` is the mean over the frames: exactly F · `tokens` are left of F frames, however they are
    spread.
    """

    across_images = True

    def __init__(self, tokens: int | None, shape: BackboneShape) -> None:
        super().__init__(tokens, shape, 0)

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        index, _ = tokens.images
        if self.tokens is None or not index.numel() or self.tokens >= index.shape[1]:
            return tokens
        row, _ = tokens.frames
        count = self.tokens * torch.bincount(row, minlength=len(tokens.mask))
        return keep_best_of_rows(tokens, self.score(tokens, context), count)


class TokenMerger(Compressor):
    """Merges the visual tokens of each image into groups, before one layer. Override `assign`."""

    def __init__(self, tokens: int | None, shape: BackboneShape, layer: int) -> None:
        super().__init__(tokens, shape)
        self.layer = layer

    def layers(self) -> set[int]:
        return {self.layer}

    def assign(self, tokens: TokenSequence, context: Context) -> tuple[Tensor, Tensor | None]:
        """Groups [I, N], 0… in each image (-1 leaves a token alone), and weights [I, N] or None.

        Images as in `tokens.images`.
        """
        raise NotImplementedError

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        if not tokens.images[0].numel():
            return tokens
        groups, weights = self.assign(tokens, context)
        return merge_images(tokens, groups, weights)


class Resampler(Compressor):
    """Makes M new tokens of each image before the LLM. Override `forward`."""

    def layers(self) -> set[int]:
        return {0}

    def forward(self, features: Tensor, context: Context) -> Tensor:
        """Projected visual tokens [I, N, D] → [I, M, D]."""
        raise NotImplementedError

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        _, real = tokens.images
        if not real.numel():
            return tokens
        features, sizes = tokens.visual_hidden(), real.sum(1)
        if bool(real.all()):
            return tokens.replace(self(features, context))
        made = features.new_empty(len(features), 0, features.shape[-1])
        for size in sizes.unique().tolist():  # images of different sizes, those of one size together
            same = (sizes == size).nonzero()[:, 0]
            grids = [context.grids[i] for i in same.tolist()]
            new = self(features[same, :size], dataclasses.replace(context, grids=grids))
            made = made if made.shape[1] else features.new_empty(len(features), *new.shape[1:])
            made = made.index_copy(0, same, new.to(made))
        return tokens.replace(made)


class SelfCompressor(Resampler):
    """A resampler that runs the LLM itself (`context.run_decoder`). Override `summarise`."""

    def summarise(self, embeddings: Tensor, mask: Tensor, context: Context) -> Tensor:
        """Embeddings [I, N, D] with mask [I, N] (visual tokens of an image, or a text) → summary [I, M, D]."""
        raise NotImplementedError

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        index, real = tokens.images
        if not index.numel():
            return tokens
        context.summary = self.summarise(tokens.visual_hidden(), real, context)
        return tokens.replace(context.summary)


def require_tokens(method: str, tokens: int | None) -> int:
    """`tokens`, or the error that says that `method` can't do without."""
    if tokens is None:
        raise UserError(f"method={method}: it needs a budget; give tokens=, ratio=, compression= or flops=")
    return tokens
