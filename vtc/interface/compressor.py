"""What a compression method is: `Compressor`, and narrower bases of which a method overrides one verb.

A method says at which decoder layers it acts, which attention rows it needs there, and what it does to the tokens.
It never touches positions, masks, caches or padding: the verbs of `TokenSequence` and `vtc.engine` keep those true.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from vtc.declarations import Declared
from vtc.interface.context import Context
from vtc.interface.evidence import Evidence
from vtc.interface.flops import Call, OwnPass
from vtc.interface.needs import MASKS, Need, refuse_lacking
from vtc.interface.options import bind, check_names, options_of
from vtc.interface.selection import keep_best, keep_best_of_rows, merge_images
from vtc.interface.shape import BackboneShape
from vtc.interface.spread import spread
from vtc.interface.tokens import TokenSequence

if TYPE_CHECKING:
    from typing_extensions import Self

    from vtc.interface.self_compressor import Captions
    from vtc.interface.tower import TowerUse

SUMMARY_PROMPT = "Summarize the image in a few words."  # Fwd2Bot, section 3.2


class AttachableBackbone(Protocol):
    """The part of `vtc.backbones.Backbone` that `Compressor.attach` may use.

    Attributes:
        tokenizer: of the LLM, to look a prompt up; None for a model that was built without one.
        device, dtype: of the LLM's embeddings.
    """

    @property
    def tokenizer(self) -> Any: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def add_adapters(self, names: Sequence[str], rank: int, alpha: int, dropout: float = 0.0) -> None:
        """Puts LoRA adapters of these names on the linear layers of the LLM, inactive until the engine runs one."""

    def add_tower_adapters(self, names: Sequence[str], rank: int, alpha: int, dropout: float = 0.0) -> None:
        """The same on the layers of the vision tower, up to the one that is projected."""


class Embedded(Protocol):
    """Images or texts of which vectors are to be made, in the two ways in which a method may make them.

    Attributes:
        context: with the LLM (`run_decoder`), outside of any pass of the engine.
        summary: [I, M, D] what a method that summarises has made of them already; None: nothing yet.
    """

    context: Context
    summary: Tensor | None

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """[I, N, D] and mask [I, N]: the projected visual tokens of the images, or the words of the texts."""

    def last_state(self) -> Tensor:
        """[I, D]: the LLM's last hidden state behind `SUMMARY_PROMPT`, images compressed on the way."""


class Compressor(nn.Module, Evidence):
    """A compression method. Holds its own parameters only, never the backbone.

    An object is cheap to make: it knows its options, its sizes and its budget, and has no parameters before
    `make_parameters` ran. `vtc.methods.make` makes one by name, `vtc.methods.build` one with its parameters.

    Attributes:
        name: under which it is registered.
        about: the one line of `--help` and the README; empty: the first line of the docstring.
        version: raised by whoever changes the numbers that come out, so that what was measured before is not mistaken
            for them.
        needs: properties that a backbone must have; those of the bases count too.
        needs_training: useless without trained weights.
        fixed_budget: trained weights hold for one number of tokens only.
        elastic: trained weights hold for every number that it offers: `tokens` may change; see `training_budgets`.
        trained_options: options that trained weights hold for; a checkpoint of another value is refused.
        learns_from_captions: `losses` has a term of its own over images and their captions.
        default_share: of the visual tokens, what is left where the user gives no budget.
        default_count: the same as a number, or all visual tokens where there are fewer.
        bottleneck: what follows an image sees of it only the tokens that the method put behind it: the mask hides each
            image's visual tokens from all but the image itself and those, in every layer, and they leave the cache
            when the prefill is over. Later tokens keep their positions. Not together with `probes` or `reads_prompt`.
        adapter: the LoRA adapter under which the LLM answers; None for the plain weights.
        reads_prompt: what is left of an image depends on the text behind it, by `Context.prompt` or
            `Context.next_layer_attention` (one that has `probes` need not say so).
        across_images: what is left of an image depends on the others of its row, and images differ in how much.
        repairs: it leaves all tokens, and changes where they stand: in a composition it has no budget of its own.
        spreads: it says how complex an image is (`complexity`) and acts before the LLM alone, so that its budget may be
            a mean over images (`budget=mean`).
        scale: under such a budget, tokens of an image for each unit of its complexity; None: each image has `tokens`.

    Args:
        tokens: visual tokens per image that are left at the end; None: `default_tokens`; a function of the method, such
            as `vtc.budget.Budget.resolve`, that chooses them from what it offers.
        shape: the backbone's sizes.
        options: values of the options that the class declares (`vtc.interface.options`); `self.options` keeps them as
            they are, the attributes of the same names hold what they come to.

    Raises:
        UserError: an unknown option or a value that it may not hold, a backbone that lacks what the method needs, or
            what `prepare` refuses.
    """

    name: ClassVar[str] = ""
    about: ClassVar[str] = ""
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[Need, ...]] = ()
    needs_training: ClassVar[bool] = False
    fixed_budget: ClassVar[bool] = False
    elastic: ClassVar[bool] = False
    trained_options: ClassVar[tuple[str, ...]] = ()
    learns_from_captions: ClassVar[bool] = False
    default_share: ClassVar[float | None] = None
    default_count: ClassVar[int | None] = None
    bottleneck: ClassVar[bool] = False
    adapter: str | None = None
    reads_prompt: bool = False
    across_images: bool = False
    repairs: bool = False
    spreads: ClassVar[bool] = False
    scale: float | None = None
    layer_scale: str = "auto"  # an option of every class that has a `layer_option`

    def __init__(
        self, tokens: int | None | Callable[[Compressor], int | None], shape: BackboneShape, **options: Any
    ) -> None:
        super().__init__()
        self.shape, self.options = shape, options
        check_names(self.name, options, self.declared_options())
        needs = {need for base in type(self).__mro__ for need in vars(base).get("needs", ())}
        refuse_lacking(self.name, needs | ({MASKS} if self.bottleneck else set()), shape)
        bind(self, options)
        self.tokens: int | None = None
        self.requested_tokens = tokens(self) if callable(tokens) else tokens
        self.tokens = self.default_tokens() if self.requested_tokens is None else self.requested_tokens
        self.prepare()

    def with_tokens(self, tokens: int | None) -> Self:
        """The same method with another budget, without parameters."""
        return type(self)(tokens, self.shape, **self.options)

    def build(self) -> Self:
        """Makes the untrained parameters, and returns the method."""
        self.make_parameters()
        return self

    @classmethod
    def declared_options(cls) -> dict[str, Declared]:
        """The options that it takes, by name."""
        return {name: declared for name, (_, declared) in options_of(cls).items()}

    def prepare(self) -> None:
        """Derives what the options come to on this backbone, without making any tensor.

        Raises:
            UserError: options that don't go together, with each other, with `tokens` or with the backbone.
        """

    def make_parameters(self) -> None:
        """Makes its untrained parameters; called once."""

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
        """The tokens that `layer` gets to see; called where there are visual ones."""
        return tokens

    def complexity(self, tokens: TokenSequence, context: Context) -> Tensor:
        """[I] > 0: how much of the budget each image should have, relative to other images (as in `tokens.images`)."""
        raise NotImplementedError

    def counts(self, tokens: TokenSequence, context: Context) -> Tensor:
        """[I]: how many visual tokens each image is to have left, at most all that it has."""
        sizes = tokens.images[1].sum(1)
        if self.scale is None:
            return sizes if self.tokens is None else sizes.clamp(max=self.tokens)
        return spread(self.complexity(tokens, context), sizes, self.scale)

    def embed(self, source: Embedded) -> Tensor:
        """[I, D]: one vector for each image or text, for retrieval."""
        return source.last_state()

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

    def losses(self, context: Context, captions: Captions | None = None) -> dict[str, Tensor]:
        """Losses beyond next-token prediction, after a training pass over `context`.

        Args:
            captions: of the images, where training has them.
        """
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

    # -- budgets; `tokens` need not be known for the first two
    def default_tokens(self) -> int | None:
        """Tokens per image where the user gives no budget; None keeps whatever there is."""
        if self.default_count is None and self.default_share is None:
            return None
        full = self.shape.visual_tokens
        if self.default_count is not None:
            return min(self.default_count, full or self.default_count)
        return None if self.default_share is None or full is None else max(1, round(full * self.default_share))

    def offers(self) -> Sequence[int]:
        """The numbers of tokens per image that it can leave."""
        return range(1, (self.shape.visual_tokens or 0) + 1)

    def layer_tokens(self) -> list[int]:
        """Visual tokens (registers among them) that each decoder layer sees per image in the prefill that answers; of a
        method that acts once, all up to there, then `tokens`."""
        full, layer = self.shape.visual_tokens or 0, max(self.layers(), default=0)
        left = full if self.tokens is None else self.tokens
        return [full] * layer + [left] * (self.shape.depth - layer)

    def cached_tokens(self) -> list[int]:
        """Of `layer_tokens`, what is in each layer's cache when the prefill is over."""
        return [min(n, self.tokens or 0) if self.bottleneck else n for n in self.layer_tokens()]

    @property
    def acts(self) -> bool:
        """Whether there is anything to do on an image of the backbone."""
        return self.tokens is not None and self.tokens < (self.shape.visual_tokens or 0)

    # -- costs of a prefill of one image and `text` other tokens, as torch's FlopCounterMode counts
    def adapter_flops(self, layer: int) -> float:
        """FLOPs a token of `adapter` in a decoder layer."""
        return 0.0

    def own_passes(self, visual: float, text: int) -> Sequence[OwnPass]:
        """The passes of the decoder that it runs itself (`Context.run_decoder`) on an image of `visual` tokens."""
        return ()

    def own_flops(self, text: int) -> float:
        """Its own arithmetic beside those passes: a network, products of matrices of a selection. What it does inside
        the tower belongs to the tower."""
        return 0.0

    def calls(self, text: int) -> list[Call]:
        """What the decoder's layers run on, the passes of its own first."""
        own = [c for one in self.own_passes(self.shape.visual_tokens or 0, text) for c in one.calls(self.shape.depth)]
        answering = [n + text for n in self.layer_tokens()]
        return own + [Call(i, n, n, self.adapter_flops(i)) for i, n in enumerate(answering)]

    @property
    def needs_question(self) -> bool:
        """Whether what is left of an image depends on the question, so that none can be compressed beforehand."""
        return self.reads_prompt or bool(self.probes())

    def unstorable(self) -> str:
        """Why an image can't be compressed beforehand into tokens that layer 0 reads in its place; empty: it can."""
        if self.needs_question:
            return "what is left of an image depends on the question"
        if self.across_images:
            return "what is left of an image depends on the others of its row"
        if self.bottleneck:
            return "the text reads keys and values of every layer, which no tokens before the LLM hold"
        if self.repairs:
            return "its tokens stand at several positions at once, of which a stored image holds one"
        later = max(self.layers(), default=0)
        return f"the layers before layer {later} read more than is left in the end" if later else ""

    def answering_calls(self, calls: Sequence[Call], text: int) -> list[Call]:
        """Those of the `calls` of a prefill that are left where the image was compressed beforehand and stored."""
        last = calls if self.needs_question else calls[-self.shape.depth :]
        if self.bottleneck:
            return [dataclasses.replace(c, queries=text, keys=(self.tokens or 0) + text) for c in last]
        return [*last]

    def leaves(self) -> BackboneShape:
        """The sizes that a method behind this one finds: fewer visual tokens, in no grid, at no fixed places."""
        if self.tokens is None or self.tokens == self.shape.visual_tokens:
            return self.shape
        return dataclasses.replace(self.shape, visual_tokens=self.tokens, grid=None, places=False)


class OneLayer(Compressor):
    """Acts before one layer: `layer`, 0 unless the class has it as an option."""

    layer: int = 0

    def layers(self) -> set[int]:
        return {self.layer}


class TokenPruner(OneLayer):
    """Keeps the best visual tokens of each image, before one layer. Override `score`."""

    def score(self, tokens: TokenSequence, context: Context) -> Tensor:
        """[B, L], higher is better; only the visual tokens' scores are read. Ties go to the earlier token."""
        raise NotImplementedError

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        if self.scale is None and (self.tokens is None or tokens.fits(self.tokens)):
            return tokens
        return keep_best(tokens, self.score(tokens, context), self.counts(tokens, context))


class VideoPruner(TokenPruner):
    """Keeps the best visual tokens of a row's images together, the frames of a video in order. Override `score`.

    Before the LLM. `tokens` is the mean over the frames: exactly F · `tokens` are left of F frames, however they are
    spread.
    """

    across_images = True

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        if self.tokens is None or tokens.fits(self.tokens):
            return tokens
        row, _ = tokens.frames
        count = self.tokens * torch.bincount(row, minlength=len(tokens.mask))
        return keep_best_of_rows(tokens, self.score(tokens, context), count)


class TokenMerger(OneLayer):
    """Merges the visual tokens of each image into groups, before one layer. Override `assign`."""

    def assign(self, tokens: TokenSequence, context: Context) -> tuple[Tensor, Tensor | None]:
        """Groups [I, N], 0… in each image (-1 leaves a token alone), and weights [I, N] or None.

        Images as in `tokens.images`.
        """
        raise NotImplementedError

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        groups, weights = self.assign(tokens, context)
        return merge_images(tokens, groups, weights)
