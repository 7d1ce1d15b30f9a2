"""Images compressed beforehand: what layer 0 reads of one, made once, and answers from that without the picture.

A prompt of a family is text, the image's part, text. The image's part is what its processor writes for a picture (of
tiles with text between them, say), with the visual tokens that the method leaves. The text in front of it and behind it
is the question's; so the same part answers every question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.backbones import adapters
from vtc.engine.call import Call
from vtc.engine.embed import context_of
from vtc.engine.engine import compressing
from vtc.engine.limits import check_context
from vtc.engine.prefill import Filled, Prefill
from vtc.engine.questions import Questions
from vtc.engine.walk import Walk
from vtc.errors import NotFinite, SampleError, UserError
from vtc.interface import SUMMARY_PROMPT, TEXT, Compressor, TokenSequence

if TYPE_CHECKING:
    from PIL.Image import Image

    from vtc.backbones.base import Backbone

MADE = -1  # in `StoredImage.ids`: a visual token, or one that a method made


@dataclass(frozen=True)
class StoredImage:
    """An image's part of a prompt, before layer 0.

    Attributes:
        tokens: [M, D] the visual tokens, and those that a method made.
        ids: [L] of the words among them; `MADE` for each of `tokens`, in their order.
        position: [P, L], counted from where the part begins.
        extent: how many positions the text behind it goes on by.
        deep: [M, S, D] what is still added to `tokens` behind the first S layers (see `TokenSequence`); None: nothing.
    """

    tokens: Tensor
    ids: Tensor
    position: Tensor
    extent: int
    deep: Tensor | None = None


def check_storable(method: Compressor, family: type[Backbone]) -> None:
    """Raises `UserError` for a method that makes no tokens that could be stored, which says why, and for a family that
    couldn't read them.
    """
    if family.both_ways:
        raise UserError(
            f"backbone={method.shape.name}: no images can be stored, its visual tokens see each other both ways, and a "
            "stored image doesn't tell them from those that a method made"
        )
    if reason := method.unstorable():
        raise UserError(f"method={method.name}: no images can be stored, {reason}")


@torch.no_grad()
def compress_images(
    backbone: Backbone, method: Compressor, images: Sequence[Image]
) -> tuple[list[StoredImage], Tensor]:
    """Images → what layer 0 reads of each, and their embeddings [I, D] (as `embed_images` gives), in one pass of the
    tower.

    Raises:
        UserError: see `check_storable`.
        NotFinite: what is left of an image isn't all numbers.
    """
    check_storable(method, type(backbone))
    inputs = backbone.inputs([SUMMARY_PROMPT] * len(images), [[image] for image in images])
    with compressing(backbone, method) as engine:
        tokens = engine.first_tokens(dict(inputs))
        summary = None if engine.context is None else engine.context.memo.get("summary")
    around = _around(backbone, SUMMARY_PROMPT)
    compressed = [_image_part(backbone, inputs["input_ids"], tokens, row, around) for row in range(len(images))]
    vectors = method.embed(EmbeddedTokens(backbone, method, compressed, summary))
    if not bool(vectors.isfinite().all()):
        raise NotFinite(f"backbone={backbone.name}, method={method.name}: the embedding isn't finite")
    return compressed, vectors


class EmbeddedTokens:
    """Images of which the compressed tokens are at hand (`vtc.interface.Embedded`)."""

    def __init__(
        self, backbone: Backbone, method: Compressor, images: Sequence[StoredImage], summary: Tensor | None
    ) -> None:
        self.backbone, self.method, self.images, self.summary = backbone, method, images, summary
        self.context = context_of(backbone)

    def embeddings(self) -> tuple[Tensor, Tensor]:
        raise UserError(f"method={self.method.name}: its embedding reads all visual tokens, and no image keeps those")

    def last_state(self) -> Tensor:
        prompts = [SUMMARY_PROMPT] * len(self.images)
        return Reading(self.backbone, self.method).begin(prompts, self.images)[:, -1].float()


@torch.inference_mode()
def answer(
    backbone: Backbone,
    method: Compressor,
    questions: Sequence[str],
    images: Sequence[StoredImage],
    new_tokens: int,
    compiled: bool = False,
) -> list[Tensor]:
    """Greedy answers [≤ `new_tokens`] to one question about each image, as ids of tokens without the one that ends it.

    Args:
        compiled: whether the pass over the prompts is one that is compiled once (`vtc.engine.prefill`), for many calls.

    Raises:
        SampleError: a prompt that doesn't fit into the context with its answer; logits that aren't finite.
        UserError: to be compiled, and can't be.
    """
    reading = Reading(backbone, method, new_tokens, compiled)
    ends = backbone.model.generation_config.eos_token_id
    stop = torch.tensor([] if ends is None else ends, dtype=torch.long, device=backbone.device).flatten()
    head = backbone.model.get_output_embeddings()
    hidden, steps = reading.begin(questions, images), []
    done = torch.zeros(len(images), dtype=torch.bool, device=backbone.device)
    while True:
        logits = head(hidden[:, -1])
        if not bool(logits.isfinite().all()):
            raise NotFinite(f"backbone={backbone.name}, method={method.name}: the logits aren't finite")
        ids = logits.argmax(-1)
        done |= torch.isin(ids, stop)
        steps.append(ids.masked_fill(done, MADE))
        if bool(done.all()) or len(steps) == new_tokens:
            break
        hidden = reading.go_on(ids)
    rows = torch.stack(steps, 1)
    return [row[row != MADE] for row in rows]


class Reading:
    """Passes of the decoder over prompts with compressed images, from the first on.

    Args:
        new_tokens: how many will be generated, which must fit into the context too.
        compiled: whether the first pass is compiled.
    """

    def __init__(self, backbone: Backbone, method: Compressor, new_tokens: int = 0, compiled: bool = False) -> None:
        self.backbone, self.method, self.new_tokens, self.compiled = backbone, method, new_tokens, compiled
        self.cache: Any = None
        self.filled: Filled | None = None  # by a compiled pass
        self.mask, self.next = torch.empty(0), torch.empty(0)

    def begin(self, questions: Sequence[str], images: Sequence[StoredImage]) -> Tensor:
        """Last hidden states [B, L, D] of the prompts, left-padded."""
        around = {question: _around(self.backbone, question) for question in dict.fromkeys(questions)}
        rows = [_row(self.backbone, around[q], image) for q, image in zip(questions, images, strict=True)]
        longest = max(len(row[0]) for row in rows)
        device, axes = self.backbone.device, self.backbone.position_axes
        hidden = torch.zeros(len(rows), longest, self.backbone.shape.width, device=device, dtype=self.backbone.dtype)
        position = torch.zeros(axes, len(rows), longest, dtype=torch.long, device=device)
        self.mask = torch.zeros(len(rows), longest, dtype=torch.bool, device=device)
        made = torch.zeros_like(self.mask)
        for number, (embeddings, place, is_made) in enumerate(rows):
            own = slice(longest - len(embeddings), None)
            hidden[number, own], position[:, number, own] = embeddings, place
            self.mask[number, own], made[number, own] = True, is_made
        self.next = position[:1, :, -1:] + 1
        if self.compiled:
            return self._compiled_pass(hidden, position, any(image.deep is not None for image in images))
        layered = {}
        if images[0].deep is not None:
            levels = torch.cat([image.deep for image in images if image.deep is not None]).to(hidden)
            layered = {"visual_pos_masks": made, "deepstack_visual_embeds": list(levels.unbind(1))}
        return self._pass(hidden, position, self.new_tokens, layered)

    def go_on(self, ids: Tensor) -> Tensor:
        """Last hidden states [B, 1, D] of one more token [B] a row."""
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
        if self.filled is not None:
            self.cache, self.filled = self.filled.cache(self.backbone.decoder), None
        hidden = self.backbone.decoder.embed_tokens(ids[:, None])
        position, self.next = self.next.expand(self.backbone.position_axes, -1, -1), self.next + 1
        return self._pass(hidden, position, None, {})

    def _compiled_pass(self, hidden: Tensor, position: Tensor, deep: bool) -> Tensor:
        if deep:
            raise UserError(f"compiled=True: backbone={self.backbone.name} adds to visual tokens between its layers")
        check_context(self.backbone, None, position * self.mask, self.new_tokens)
        last, self.filled = Prefill.run(self.backbone, self.method.adapter, hidden, position, self.mask)
        return last

    def _pass(self, hidden: Tensor, position: Tensor, new_tokens: int | None, layered: dict) -> Tensor:
        call = Call(Questions(), new_tokens=new_tokens)
        plain = Compressor(None, self.backbone.shape)  # whatever is to be dropped has been
        with adapters.using(self.backbone.decoder.layers, self.method.adapter):
            walk = Walk(self.backbone, plain, call, self.mask, self.cache, True, layered)
            output = walk.run(hidden, position, None)
        self.cache = walk.cache
        assert output.last_hidden_state is not None
        return output.last_hidden_state


def _around(backbone: Backbone, question: str) -> tuple[Tensor, Tensor]:
    """The words before and behind the picture in the prompt of a question, as ids.

    Raises:
        SampleError: the question has a picture's place in it.
    """
    prompt, marker = backbone.prompt(question), backbone.tokenizer.convert_ids_to_tokens(backbone.image_token_id)
    before, *behind = prompt.split(backbone.image_text)
    if len(behind) != 1:
        raise SampleError(f"question={question[:80]!r}: it has {backbone.image_text} in it, the place of a picture")
    ids = backbone.tokenizer(f"{before}{marker}{behind[0]}")["input_ids"]
    if ids.count(backbone.image_token_id) != 1:
        raise SampleError(f"question={question[:80]!r}: it has {marker} in it, the place of a picture")
    place = ids.index(backbone.image_token_id)
    words = torch.tensor(ids, device=backbone.device)
    return words[:place], words[place + 1 :]


def _image_part(
    backbone: Backbone, input_ids: Tensor, tokens: TokenSequence, row: int, around: tuple[Tensor, Tensor]
) -> StoredImage:
    """The part of a row of `tokens` between the words `around`."""
    real = tokens.mask[row].nonzero()[:, 0]
    before, behind = len(around[0]), len(around[1])
    origin = tokens.origin[row, real]
    for words, own in ((around[0], origin[:before]), (around[1], origin[len(real) - behind :])):
        if not torch.equal(input_ids[row, own], words):
            raise UserError(f"backbone={backbone.name}: its processor changes the words around a picture")
    own = real[before : len(real) - behind]
    made = tokens.role[row, own] != TEXT
    start = tokens.position[:, row, real[0]].min() + before
    last = real[len(real) - behind]
    deep = None if tokens.deep is None else tokens.deep[row, own[made]]
    ids: Tensor = input_ids[row, tokens.origin[row, own].clamp(min=0)]
    return StoredImage(
        tokens=tokens.hidden[row, own[made]],
        ids=ids.masked_fill(made, MADE),
        position=tokens.position[:, row, own] - start,
        extent=int(tokens.position[0, row, last] - start),
        deep=deep if deep is not None and bool(deep.any()) else None,
    )


def _row(backbone: Backbone, around: tuple[Tensor, Tensor], image: StoredImage) -> tuple[Tensor, Tensor, Tensor]:
    """A prompt with an image in it: embeddings [L, D], positions [P, L], which are the image's tokens [L].

    Args:
        around: the words before and behind it, see `_around`.
    """
    before, behind = around
    device, axes = backbone.device, backbone.position_axes
    ids = image.ids.to(device)
    made = ids == MADE
    embed = backbone.decoder.embed_tokens
    part = embed(ids.masked_fill(made, 0))
    part[made] = image.tokens.to(part)
    first = torch.arange(len(before), device=device).expand(axes, -1)
    start = len(before) + image.extent
    last = torch.arange(start, start + len(behind), device=device).expand(axes, -1)
    place = torch.cat([first, image.position.to(device) + len(before), last], 1)
    is_made = torch.cat([made.new_zeros(len(before)), made, made.new_zeros(len(behind))])
    return torch.cat([embed(before), part, embed(behind)]), place, is_made
