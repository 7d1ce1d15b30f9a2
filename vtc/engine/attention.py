"""What chosen tokens attend to in each layer, for whoever wants to look: `Engine.watching_attention`.

Only the rows that are asked for are computed, from queries and keys as the layer itself projects them: nothing runs
twice, the layer keeps its attention implementation, and no map of all tokens by all tokens is ever made. Passes that a
method runs itself (`Context.run_decoder`, Fwd2Bot's first one) are watched as well.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtc.engine import probe
from vtc.engine.call import Images
from vtc.engine.views import View, kinds
from vtc.interface import REGISTER, TEXT, VISUAL, TokenSequence

Queries = Callable[[TokenSequence], Tensor]


@dataclass(frozen=True)
class AttentionRows:
    """What some of the L tokens that a layer runs on pay to all of them.

    Attributes:
        name: under which they were asked for.
        layer: of the decoder.
        own: whether in a pass that the method runs itself, whose rows are the images one by one.
        queries: [B, Q] columns of the tokens that pay; shorter rows are filled up.
        real: [B, Q] bool, which of these were asked for.
        weights: [B, Q, L] float32 on the CPU, after the softmax, mean over heads.
        role: [B, L] TEXT | VISUAL | REGISTER, of what is paid to; padding counts as TEXT and gets nothing.
        images: of each image its row, and [N] the column of the token that holds each of its N visual tokens in this
            layer: its own, or that of the token which it merged into; -1 for one that is gone.
    """

    name: str
    layer: int
    own: bool
    queries: Tensor
    real: Tensor
    weights: Tensor
    role: Tensor
    images: tuple[tuple[int, Tensor], ...]

    def to_image(self, number: int) -> Tensor:
        """[Q, N]: what each query of its row pays to the token that holds each visual token of an image; NaN for one
        that is gone. What a merged token gets stands with each of its members.
        """
        row, columns = self.images[number]
        paid = self.weights[row][self.real[row]]
        return paid[:, columns.clamp(min=0)].masked_fill(columns < 0, float("nan"))

    def to_role(self, role: int) -> Tensor:
        """[B]: what a query pays to all tokens of this role together, mean over the queries; NaN without any."""
        share = (self.weights * (self.role == role)[:, None]).sum(2) * self.real
        count = self.real.sum(1)
        return (share.sum(1) / count).masked_fill(count == 0, float("nan"))


def made(tokens: TokenSequence) -> Tensor:
    """[B, L] bool: the tokens that a method made: registers, summary and resampled tokens."""
    return (tokens.role != TEXT) & tokens.mask & (tokens.place < 0)


class AttentionWatch:
    """Watches passes over the decoder while an engine runs them.

    Attributes:
        rows: what was seen, pass by pass and layer by layer.

    Args:
        asked: name → which tokens' rows are wanted, [B, L] bool of the tokens before a layer.
        layers: of the decoder; None: all.
    """

    def __init__(self, asked: Mapping[str, Queries], layers: Collection[int] | None) -> None:
        self.asked, self._layers = asked, layers
        self.rows: list[AttentionRows] = []
        self.reducing: TokenSequence | None = None  # what the method is given to reduce, while it does

    def wants(self, layer: int) -> bool:
        return self._layers is None or layer in self._layers

    @contextmanager
    def running(
        self,
        number: int,
        layer: Any,
        tokens: TokenSequence,
        images: Images,
        rope: tuple[Tensor, Tensor],
        real: Tensor | None,
        size: Tensor | None,
        bottleneck: bool,
        cached: Callable[[], Tensor | None],
        view: View | None = None,
    ) -> Iterator[None]:
        """While the engine runs a layer on `tokens`.

        Args:
            real: [B, S] bool, the real ones of the S keys; None: all are.
            size: [B, S] how often attention counts each key; None: once.
            cached: gives [B, Hkv, S, d] keys after RoPE where there is a cache, once the layer has run.
            view: which keys are in a token's reach; None: all before it.
        """
        if not self.wants(number) or not hasattr(layer, "self_attn"):  # linear attention pays nothing to a token
            yield
            return
        with probe.projections(layer.self_attn) as projected:
            yield
        columns = tuple(_columns(tokens, images))
        for name, choose in self.asked.items():
            self._note(name, number, layer.self_attn, projected, rope, tokens, choose(tokens), real, columns,
                       bottleneck=bottleneck, keys=cached(), size=size, view=view)  # fmt: skip

    @contextmanager
    def own_pass(
        self, decoder: Any, embeddings: Tensor, mask: Tensor | None, bidirectional: bool,
        views: Mapping[str | None, View],
    ) -> Iterator[None]:  # fmt: skip
        """While a method runs the decoder itself on `embeddings` [I, L, D] with `mask` [I, L], and with these `views`
        by kind of layer; none: a token sees all before it.

        What is an image's visual token, what is the method's own and what is text is told by the embeddings: they are
        those of the image, in none of the vocabulary's rows, or the rest.
        """
        tokens = _own_tokens(embeddings, mask, self.reducing, decoder.embed_tokens)
        columns = tuple((row, (tokens.place[row] >= 0).nonzero()[:, 0].cpu()) for row in range(len(embeddings)))
        with ExitStack() as stack:
            for number, layer in enumerate(decoder.layers):
                if self.wants(number) and hasattr(layer, "self_attn"):
                    view = views.get(kinds(decoder)[number])
                    self._hook(stack, number, layer.self_attn, tokens, mask, columns, bidirectional, view)
            yield

    def _hook(
        self, stack: ExitStack, number: int, attention: Any, tokens: TokenSequence, mask: Tensor | None,
        columns: tuple[tuple[int, Tensor], ...], bidirectional: bool, view: View | None,
    ) -> None:  # fmt: skip
        projected = stack.enter_context(probe.projections(attention))
        rope: list[tuple[Tensor, Tensor]] = []

        def before(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
            rope.append(kwargs["position_embeddings"])

        def behind(module: Any, args: tuple, output: Any) -> None:
            for name, choose in self.asked.items():
                self._note(name, number, attention, projected, rope[-1], tokens, choose(tokens), mask, columns,
                           own=True, bidirectional=bidirectional, view=view)  # fmt: skip
            rope.clear()
            projected.clear()

        stack.callback(attention.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(attention.register_forward_hook(behind).remove)

    @torch.no_grad()
    def _note(
        self, name: str, number: int, attention: Any, projected: dict[str, Tensor], rope: tuple[Tensor, Tensor],
        tokens: TokenSequence, chosen: Tensor, real: Tensor | None, columns: tuple[tuple[int, Tensor], ...],
        own: bool = False, bidirectional: bool = False, bottleneck: bool = False, keys: Tensor | None = None,
        size: Tensor | None = None, view: View | None = None,
    ) -> None:  # fmt: skip
        chosen = chosen & tokens.mask
        most = int(chosen.sum(1).max())
        if not most:
            return
        device = projected["q"].device  # a model may be spread over devices
        tokens, chosen = tokens.to(device), chosen.to(device)
        column = chosen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        row, length = torch.arange(len(column), device=device)[:, None], tokens.mask.shape[1]
        cos, sin = (t.to(device).expand(len(column), -1, -1) for t in rope)
        q = probe.rotated(attention, projected["q"][row, column], cos[row, column], sin[row, column])
        k = probe.rotated(attention, projected["k"], cos, sin) if keys is None else keys.to(device)
        total = k.shape[2]
        there = None if real is None else real.to(device).bool()
        seen = probe.seen(column, tokens.block, total, there, bidirectional, view)
        if bottleneck:
            foreign = tokens.image[:, None] != tokens.image.gather(1, column)[..., None]
            seen[..., total - length :] &= ~(foreign & (tokens.role == VISUAL)[:, None])
        seen |= torch.arange(total, device=device) == (column + total - length)[..., None]  # every token sees itself
        weights = probe.weights(attention, q, k, seen, size).mean((1, 2))[..., total - length :]
        role = tokens.role.masked_fill(~tokens.mask, TEXT)
        self.rows.append(
            AttentionRows(
                name, number, own, column.cpu(), chosen.gather(1, column).cpu(), weights.cpu(), role.cpu(), columns
            )
        )


def _columns(tokens: TokenSequence, images: Images) -> Iterator[tuple[int, Tensor]]:
    """Of each image of a call `AttentionRows.images`."""
    length, width = tokens.mask.shape[1], tokens.holder.shape[1]
    column = torch.arange(length, device=tokens.mask.device).expand_as(tokens.mask)
    alive = tokens.visual & (tokens.place >= 0)
    at = torch.full((len(tokens.mask), width + 1), -1, device=column.device)  # the last one is for what isn't visual
    at.scatter_(1, torch.where(alive, tokens.place, width), torch.where(alive, column, -1))
    at = at[:, :width].gather(1, tokens.holder.clamp(min=0)).masked_fill(tokens.holder < 0, -1).cpu()
    visual, image = images.visual.cpu(), images.image.cpu()
    for row in range(len(visual)):
        for number in range(int(image[row].max()) + 1):
            yield row, at[row, visual[row] & (image[row] == number)]


def _own_tokens(embeddings: Tensor, mask: Tensor | None, reducing: TokenSequence | None, embed: Any) -> TokenSequence:
    """The tokens of a pass that a method runs itself; `place` is the number of a visual token in its image."""
    rows, length = embeddings.shape[:2]
    zero = torch.zeros(rows, length, dtype=torch.long, device=embeddings.device)
    role, place = torch.full_like(zero, REGISTER), zero - 1
    if reducing is not None and rows == len(reducing.images[0]):
        visual, real = reducing.visual_hidden().to(embeddings), reducing.images[1]
        for row in range(rows):
            own = visual[row, real[row].to(visual.device)]
            for start in range(length - len(own) + 1):
                if torch.equal(embeddings[row, start : start + len(own)], own):
                    role[row, start : start + len(own)] = VISUAL
                    place[row, start : start + len(own)] = torch.arange(len(own), device=place.device)
                    break
    # As embedded: some embeddings are scaled.
    words = embed(torch.arange(len(embed.weight), device=embed.weight.device)).to(embeddings)
    for row, column in (role == REGISTER).nonzero().tolist():  # one by one: tokens by vocabulary is large
        if bool((words == embeddings[row, column]).all(1).any()):
            role[row, column] = TEXT
    real_tokens = torch.ones_like(zero, dtype=torch.bool) if mask is None else mask.bool()
    return TokenSequence(
        hidden=embeddings[..., :0], mask=real_tokens, position=zero[None], role=role, origin=place, block=zero,
        image=zero, place=place,
    )  # fmt: skip
