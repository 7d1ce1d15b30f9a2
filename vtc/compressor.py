"""The one interface: what a compression method sees (`TokenSequence`, `Context`) and what it is (`Compressor`).

A method says at which decoder layers it acts, which attention rows it needs there, and what it does to the tokens.
It never touches positions, masks, caches or padding: the verbs of `TokenSequence` keep those true, and `vtc.engine`
does the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from vtc.errors import UserError

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone, BackboneShape
    from vtc.tower import Tower, TowerUse

TEXT, VISUAL, REGISTER = 0, 1, 2
SUMMARY_PROMPT = "Summarize the image in a few words."  # Fwd2Bot, section 3.2


@dataclass
class TokenSequence:
    """B rows of L tokens of width D between two decoder layers. Verbs return a new sequence and never change this one.

    Attributes:
        hidden: [B, L, D] hidden states (before layer 0: the embeddings).
        mask: [B, L] bool, the real tokens; the others are padding.
        position: [P, B, L] RoPE positions; P = 1, or 3 for M-RoPE.
        role: [B, L] TEXT | VISUAL | REGISTER.
        origin: [B, L] index in the user's sequence; -1 for a token that a method made.
        block: [B, L] 0 = shared prefix, q = 1… = the q-th independent question behind it. Attention is causal AND
            (key.block == 0 or key.block == query.block). All 0 outside packed training.
        image: [B, L] which image of its row a visual or register token belongs to (0…); -1 for text.
        shift: [B, 1] what the changes so far add to the positions of later (decoded) tokens; None = nothing.
        compact: whether dropping closes the gap in the positions. True before the LLM (layer 0): the LLM never sees the
            longer sequence. False between its layers: what was rotated by its position keeps it (FastV).
    """

    hidden: Tensor
    mask: Tensor
    position: Tensor
    role: Tensor
    origin: Tensor
    block: Tensor
    image: Tensor
    shift: Tensor | None = None
    compact: bool = False

    # ------------------------------------------------------------------ what is there
    @property
    def visual(self) -> Tensor:
        """[B, L] bool: the real visual tokens."""
        return (self.role == VISUAL) & self.mask

    @property
    def images(self) -> tuple[Tensor, Tensor]:
        """The visual tokens image by image: indices [I, N] into the B·L tokens, and which are real, [I, N] bool.

        Images come row by row, in each row from left to right; N is the length of the longest.
        """
        if getattr(self, "_images", None) is None:
            flat = self.visual.flatten().nonzero()[:, 0]
            length = self.mask.shape[1]
            owner = (flat // length) * (length + 1) + self.image.flatten()[flat]
            _, counts = torch.unique_consecutive(owner, return_counts=True)
            sizes = counts.tolist()
            if len(set(sizes)) <= 1:
                index = flat.view(len(sizes), sizes[0] if sizes else 0)
                self._images = index, torch.ones_like(index, dtype=torch.bool)
            else:
                pad = torch.nn.utils.rnn.pad_sequence
                parts = flat.split(sizes)
                real = [torch.ones_like(p, dtype=torch.bool) for p in parts]
                self._images = pad(parts, batch_first=True), pad(real, batch_first=True)
        return self._images

    def visual_hidden(self) -> Tensor:
        """[I, N, D] hidden states of the visual tokens, image by image (see `images`; padded ones repeat token 0)."""
        index, _ = self.images
        return self.hidden.flatten(0, 1).index_select(0, index.flatten()).unflatten(0, index.shape)

    def per_token(self, values: Tensor, fill: float = 0) -> Tensor:
        """Spreads values [I, N] of the visual tokens (see `images`) to [B, L]; `fill` elsewhere."""
        index, real = self.images
        out = values.new_full((self.mask.numel(),), fill)
        out[index[real]] = values[real]
        return out.view_as(self.mask)

    def to(self, device: torch.device) -> TokenSequence:
        """The same sequence with everything beside `hidden` on `device` (models spread over devices)."""
        moved = {
            f.name: getattr(self, f.name).to(device)
            for f in dataclasses.fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **moved)

    # ------------------------------------------------------------------ verbs
    def keep(self, kept: Tensor) -> TokenSequence:
        """Only these tokens, in their order.

        Args:
            kept: [B, L] bool, or [B, n] indices (any order; doubles count once).

        Rows may keep different numbers; the shorter ones are padded on the left. Keeping everything returns `self`.
        """
        if kept.dtype != torch.bool:
            kept = torch.zeros_like(self.mask).scatter(1, kept, True)
        kept = kept & self.mask
        removed = self.mask & ~kept
        if not removed.any():
            return self
        counts = kept.sum(1)
        n = int(counts.max())
        if bool((counts == n).all()):
            order = kept.nonzero()[:, 1].view(len(kept), n)
            mask = torch.ones_like(order, dtype=torch.bool)
        else:
            order = kept.to(torch.uint8).argsort(dim=1, stable=True)[:, self.mask.shape[1] - n :]
            mask = kept.gather(1, order)
        position, shift = self.position, self.shift
        if self.compact:
            before = removed.cumsum(1)
            position = position - before
            shift = before[:, -1:].neg() if shift is None else shift - before[:, -1:]
        return self._take(order, mask, position, shift)

    def hide(self, hidden: Tensor) -> TokenSequence:
        """Without the tokens `hidden` [B, L] bool, as if a mask hid them: the others keep their positions."""
        kept = dataclasses.replace(self, compact=False).keep(~hidden)
        return dataclasses.replace(kept, compact=self.compact)

    def drop(self, role: int) -> TokenSequence:
        """Without the tokens of this role."""
        return self.keep(self.role != role)

    def merge(self, groups: Tensor, weights: Tensor | None = None) -> TokenSequence:
        """Replaces each group of tokens by one token, their weighted mean, at the place of its first member.

        Its position is the mean of its members' positions, rounded down (LLaVolta), or, before the LLM, the next free
        one.

        Args:
            groups: [B, L] group of each token, 0… in each row; -1 leaves a token as it is.
            weights: [B, L] ≥ 0; None: the plain mean.
        """
        rows, length, width = self.hidden.shape
        member = (groups >= 0) & self.mask
        if not member.any():
            return self
        most = int(groups.max()) + 1
        flat = member.flatten().nonzero()[:, 0]
        group = (flat // length) * most + groups.flatten()[flat]
        weight = None if weights is None else weights.flatten()[flat].float()
        size = torch.zeros(rows * most, device=flat.device).index_add(
            0, group, torch.ones_like(group, dtype=torch.float)
        )
        total = size if weight is None else torch.zeros_like(size).index_add(0, group, weight)
        part = self.hidden.flatten(0, 1).index_select(0, flat).float()
        part = part if weight is None else part * weight[:, None]
        mean = part.new_zeros(rows * most, width).index_add(0, group, part) / total.clamp(min=1e-12)[:, None]

        first = torch.full((rows * most,), rows * length, device=flat.device).scatter_reduce(0, group, flat, "amin")
        there = first < rows * length
        first, where = first[there], there.nonzero()[:, 0]
        kept = (self.mask & ~member).flatten()
        kept[first] = True
        position = self.position
        if not self.compact:
            position = position.flatten(1).clone()
            summed = torch.zeros(position.shape[0], rows * most, device=flat.device, dtype=torch.float64)
            summed = summed.index_add(1, group, position[:, flat].double())
            position[:, first] = (summed[:, where] / size[where]).floor().to(position.dtype)
            position = position.view_as(self.position)
        origin = self.origin.flatten().clone()
        origin[first] = torch.where(size[where] > 1, -1, origin[first])
        source = torch.arange(rows * length, device=flat.device)
        source[first] = rows * length + where
        view = dataclasses.replace(
            self, hidden=source.view(rows, length, 1), position=position, origin=origin.view(rows, length)
        )
        kept = kept.view(rows, length)
        if torch.equal(kept, self.mask):  # every group has one member
            return self
        return view.keep(kept)._from_pool(torch.cat([self.hidden.flatten(0, 1), mean.to(self.hidden.dtype)]))

    def insert(self, embeddings: Tensor, after: int = VISUAL, role: int = REGISTER) -> TokenSequence:
        """Adds tokens behind each image; everything behind them moves on by as many positions.

        Args:
            embeddings: [M, D], the same for every image, or [I, M, D] (images as in `images`).
            after: VISUAL, the only place there is.
            role: what they are.
        """
        if after != VISUAL:
            raise ValueError("tokens can only be inserted after VISUAL ones")
        index, real = self.images
        rows, length, width = self.hidden.shape
        count, m = index.shape[0], embeddings.shape[-2]
        if not count or not m:
            return self
        dev = self.mask.device
        last = index.masked_fill(~real, -1).amax(1)
        row, column = last // length, last % length
        ends = torch.zeros_like(self.mask)
        ends[row, column] = True
        before = ends.cumsum(1) - ends.long()  # images that end before this token
        total = ends.sum(1, keepdim=True)
        most = int(total.max())
        lead = m * (most - total)  # padding on the left of rows with fewer images
        source = torch.full((rows, length + m * most), -1, device=dev)
        source.scatter_(
            1, torch.arange(length, device=dev) + m * before + lead, torch.arange(length, device=dev).expand(rows, -1)
        )
        steps = torch.arange(m, device=dev)
        place = (column + 1 + m * before[row, column] + lead[row, 0])[:, None] + steps
        source[row[:, None], place] = length + steps  # which one follows below; here only that it is new

        old = source.clamp(0, length - 1)
        moved = self.position + m * before
        out = self._take(old, (source >= 0) & self.mask.gather(1, old), moved, None, with_hidden=False)
        at = row[:, None], place
        out.mask[at] = True
        out.role[at] = role
        out.origin[at] = -1
        out.block[at] = 0
        out.image[at] = self.image[row, column][:, None]
        out.position[:, at[0], at[1]] = moved[:, row, column][..., None] + 1 + steps
        flat = old + length * torch.arange(rows, device=dev)[:, None]
        new = rows * length + steps + (m * torch.arange(count, device=dev)[:, None] if embeddings.ndim == 3 else 0)
        flat[at] = new.expand(count, m)
        shift = m * total if self.shift is None else self.shift + m * total
        pool = torch.cat([self.hidden.flatten(0, 1), embeddings.reshape(-1, width).to(self.hidden.dtype)])
        return dataclasses.replace(out, hidden=flat[..., None], shift=shift)._from_pool(pool)

    def rewrite(self, values: Tensor, where: Tensor) -> TokenSequence:
        """New hidden states for some visual tokens, which stay in their places.

        Args:
            values: [I, N, D] (images as in `images`).
            where: [I, N] bool, which of them; the others stay what they are.
        """
        index, real = self.images
        rows = index[where & real]
        hidden = self.hidden.flatten(0, 1).index_copy(0, rows, values[where & real].to(self.hidden.dtype))
        origin = self.origin.flatten().index_fill(0, rows, -1)
        return dataclasses.replace(self, hidden=hidden.view_as(self.hidden), origin=origin.view_as(self.origin))

    def replace(self, embeddings: Tensor, role: int = VISUAL) -> TokenSequence:
        """Puts M tokens in the place of each image's visual tokens, with positions as if the image had only ever had M.

        Args:
            embeddings: [I, M, D] (images as in `images`).
        """
        rows, length, width = self.hidden.shape
        count, m = embeddings.shape[:2]
        dev = self.mask.device
        view = dataclasses.replace(
            self, hidden=torch.arange(rows * length, device=dev).view(rows, length, 1), compact=True
        )
        marked = rows * length + torch.arange(count * m, device=dev).view(count, m, 1)
        out = view.insert(marked, role=role)
        out = out.keep((out.hidden[..., 0] >= rows * length) | (out.role != VISUAL))
        pool = torch.cat([self.hidden.flatten(0, 1), embeddings.reshape(-1, width).to(self.hidden.dtype)])
        return dataclasses.replace(out, compact=self.compact)._from_pool(pool)

    # ------------------------------------------------------------------ mechanics
    def _take(
        self, order: Tensor, mask: Tensor, position: Tensor, shift: Tensor | None, with_hidden: bool = True
    ) -> TokenSequence:
        rows, length = self.mask.shape
        hidden = self.hidden
        if with_hidden:
            flat = order + length * torch.arange(rows, device=order.device)[:, None]
            # index_select copies whole rows, and its backward is one index_add: both cheaper than an expanded gather
            hidden = hidden.flatten(0, 1).index_select(0, flat.flatten()).view(*order.shape, hidden.shape[-1])
        return TokenSequence(
            hidden=hidden,
            mask=mask,
            position=position.gather(2, order.expand(position.shape[0], -1, -1)),
            role=self.role.gather(1, order),
            origin=self.origin.gather(1, order),
            block=self.block.gather(1, order),
            image=self.image.gather(1, order),
            shift=shift,
            compact=self.compact,
        )

    def _from_pool(self, pool: Tensor) -> TokenSequence:
        """`self`, whose `hidden` holds row numbers [B, L, 1], with the rows of `pool` instead."""
        index = self.hidden[..., 0]
        return dataclasses.replace(self, hidden=pool.index_select(0, index.flatten()).unflatten(0, index.shape))


def _nothing(*args: Any, **kwargs: Any) -> Tensor:
    raise RuntimeError("this context has no backbone behind it")


def _own(rows: Tensor) -> Tensor:
    """Of one process, every process's rows."""
    return rows


@dataclass
class Context:
    """What a method may look at beside the tokens.

    Attributes:
        shape: the backbone's sizes.
        grids: (height, width) in visual tokens of each image, in the order of `TokenSequence.images`; None if unknown.
        features: the projector's output per image, a list of [N_i, D]; empty where tokens come from a cache.
        rows: layer → [B, L] attention that the last prompt token paid in that layer, mean over heads (see `probes`).
        keys: layer → [B, L, D] keys of all heads in that layer, not yet rotated by position (see `probes`).
        run_decoder: `run_decoder(embeddings [B, L, D], mask [B, L], adapter=None, bidirectional=False) -> [B, L, D]`,
            the last hidden states of the LLM (after its norm), uncompressed and without a cache, under a LoRA adapter.
        embed: token ids [...] → embeddings [..., D].
        prompt: `prompt(tokens) -> [B, L]` bool: the prompt's text behind the first image of each row (of each packed
            question), without any answer; where there is none, the last prompt token.
        ahead: `ahead(tokens, queries=None, over=None) -> [B, L]`: the attention that `queries` [B, L] bool (None: the
            last prompt token) would pay to `tokens` in the layer about to run, mean over heads and queries; the softmax
            runs over the tokens `over` [B, L] bool (None: all that a query sees). For the tokens as they are, or as
            they would be after a verb. No gradients.
        project: tower features [..., C] → visual tokens [..., D], as the backbone's projector does.
        tower: what the method asked to see of the vision tower (`Compressor.tower`); None where it asks nothing.
        training: whether gradients are wanted.
        summary: [I, M, D], what a `SelfCompressor` made of the images; None before.
        captions: (token ids [I, L], mask [I, L]) of a caption of each image, where training has them; None otherwise.
        gather: rows [I, D] → those of every process, with their gradient: a contrastive loss is over all of them.
        memo: what a method that acts at several layers wants to know again at a later one of the same pass.
    """

    shape: BackboneShape
    grids: list[tuple[int, int] | None] = field(default_factory=list)
    features: Sequence[Tensor] = ()
    rows: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    run_decoder: Callable[..., Tensor] = _nothing
    embed: Callable[[Tensor], Tensor] = _nothing
    prompt: Callable[[TokenSequence], Tensor] = _nothing
    ahead: Callable[..., Tensor] = _nothing
    project: Callable[[Tensor], Tensor] = _nothing
    tower: Tower | None = None
    training: bool = False
    summary: Tensor | None = None
    captions: tuple[Tensor, Tensor] | None = None
    gather: Callable[[Tensor], Tensor] = _own
    memo: dict[str, Any] = field(default_factory=dict)

    def attention(self, layer: int) -> Tensor:
        """[B, L]: the probed row of `layer`, over the tokens as they now are."""
        return self.rows[layer]

    def seen(self) -> Tower:
        """What the method asked to see of the vision tower."""
        if self.tower is None:
            raise RuntimeError("this context has no vision tower behind it")
        return self.tower


class Compressor(nn.Module):
    """A compression method. Holds its own parameters only, never the backbone.

    Class attributes:
        name: under which it is registered.
        needs_training: useless without trained weights.
        fixed_budget: trained weights hold for one number of tokens only.
        trained_options: options that trained weights hold for; a checkpoint of another value is refused.
        adapter: the LoRA adapter under which the LLM answers; None for the plain weights.
        reads_prompt: what is left of an image depends on the text behind it, by `Context.prompt` or `Context.ahead`
            (one that has `probes` need not say so).

    Args:
        tokens: visual tokens per image that are left at the end; None keeps whatever there is.
        shape: the backbone's sizes.
    """

    name: ClassVar[str] = ""
    needs_training: ClassVar[bool] = False
    fixed_budget: ClassVar[bool] = False
    trained_options: ClassVar[tuple[str, ...]] = ()
    adapter: str | None = None
    reads_prompt: bool = False

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

    def losses(self, context: Context) -> dict[str, Tensor]:
        """Losses beyond next-token prediction, after a training pass over `context`."""
        return {}

    def attach(self, backbone: Backbone) -> None:
        """Puts what it needs into the backbone (LoRA), or takes it from there (a tokenized prompt); idempotent."""

    @property
    def trained_for(self) -> int | None:
        """The number of tokens that its weights are for: `tokens`, unless a method can use a part of them."""
        return self.tokens

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


def keep_best(tokens: TokenSequence, score: Tensor, count: Tensor) -> TokenSequence:
    """Without the visual tokens that aren't among the best of their image. Ties go to the earlier token.

    Args:
        score: [B, L], higher is better; only the visual tokens' scores are read.
        count: [I], how many are kept of each image (images as in `tokens.images`).
    """
    index, real = tokens.images
    ranked = score.flatten()[index].float().masked_fill(~real, float("-inf"))
    place = ranked.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    chosen = (place < count[:, None]) & real
    return tokens.keep(tokens.per_token(chosen, False) | ((tokens.role != VISUAL) & tokens.mask))


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


def merge_images(tokens: TokenSequence, groups: Tensor, weights: Tensor | None = None) -> TokenSequence:
    """Merges visual tokens by groups [I, N] that count from 0 in each image (-1 leaves a token alone).

    Args:
        weights: [I, N] ≥ 0; None: plain means. Images as in `tokens.images`.
    """
    _, real = tokens.images
    most = int(groups.max()) + 1
    spread = tokens.per_token(groups.masked_fill(~real, -1), -1)
    spread = torch.where(spread >= 0, spread + most * tokens.image, -1)  # groups of different images stay apart
    return tokens.merge(spread, None if weights is None else tokens.per_token(weights))


class Resampler(Compressor):
    """Makes M new tokens of each image before the LLM. Override `forward`."""

    def layers(self) -> set[int]:
        return {0}

    def forward(self, features: Tensor, context: Context) -> Tensor:
        """Projected visual tokens [I, N, D] → [I, M, D]."""
        raise NotImplementedError

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        if not tokens.images[0].numel():
            return tokens
        return tokens.replace(self(tokens.visual_hidden(), context))


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
