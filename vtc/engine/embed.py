"""One vector per image or text, from the same model and the same compressed tokens that answer questions.

Fwd2Bot: the mean of the summary tokens (fwd2bot, eq. 3). Every other method: the last hidden state at the last token of
the family's chat prompt around "Summarize the image in a few words." (E5-V's way, arXiv 2407.12580), compressed on the
image side. Text goes where the image would be, in the same prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.engine.engine import compressing
from vtc.engine.limits import first_not_finite
from vtc.engine.passes import attach, run_decoder
from vtc.interface import SUMMARY_PROMPT, Compressor, Context

if TYPE_CHECKING:
    from PIL.Image import Image

    from vtc.backbones.base import Backbone


WORDS = ("input_ids", "token_type_ids")  # what a prompt is, whatever its picture shows
HERE = "(the text)"  # where a text goes in the family's prompt, in which nothing else is called so


def context_of(backbone: Backbone, training: bool = False) -> Context:
    """A context without an engine, for methods that run the decoder themselves."""
    return Context(
        shape=backbone.shape,
        run_decoder=partial(run_decoder, backbone),
        embed=backbone.decoder.embed_tokens,
        training=training,
    )


def encode_images(backbone: Backbone, method: Compressor, pixel_values: Tensor) -> Tensor:
    """Pixels [I, 3, H, W], of a family with one size of images → embeddings [I, D], float32, not normalised.
    Differentiable.
    """
    from PIL import Image

    side = backbone.image_size or backbone.shape.vision.image_size
    blank = Image.new("RGB", (side, side))  # of any image the processor makes the same tokens
    prompt = backbone.encode([backbone.prompt(SUMMARY_PROMPT)], [[blank]])
    words = {name: prompt[name].expand(len(pixel_values), -1) for name in WORDS if name in prompt}
    return encode_inputs(backbone, method, {**words, "pixel_values": pixel_values})


class EmbeddedImages:
    """Rows with one image each, as inputs of `core` with the summary prompt around it (`vtc.interface.Embedded`)."""

    summary: Tensor | None = None

    def __init__(self, backbone: Backbone, method: Compressor, inputs: dict[str, Any], training: bool = False) -> None:
        self.backbone, self.method, self.inputs = backbone, method, inputs
        self.context = context_of(backbone, training)

    def embeddings(self) -> tuple[Tensor, Tensor]:
        features = self.backbone.image_features(dict(self.inputs)) or []
        visual = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
        sizes = torch.tensor([len(f) for f in features], device=visual.device)
        return visual, torch.arange(visual.shape[1], device=visual.device) < sizes[:, None]

    def last_state(self) -> Tensor:
        with compressing(self.backbone, self.method):
            out = self.backbone.core(**self.inputs, use_cache=False)
        return out.last_hidden_state[:, -1].float()


class EmbeddedTexts:
    """Token ids and mask [T, L] (`vtc.interface.Embedded`)."""

    summary: Tensor | None = None

    def __init__(self, backbone: Backbone, method: Compressor, input_ids: Tensor, attention_mask: Tensor) -> None:
        self.backbone, self.method = backbone, method
        self.words, self.real = backbone.decoder.embed_tokens(input_ids), attention_mask.bool()
        self.context = context_of(backbone)

    def embeddings(self) -> tuple[Tensor, Tensor]:
        return self.words, self.real

    def last_state(self) -> Tensor:
        backbone, count, ones = self.backbone, len(self.words), self.real.new_ones
        before, after = backbone.prompt(HERE, images=0).split(HERE)
        around = [_ids(backbone, before, special=True), _ids(backbone, f"\n{SUMMARY_PROMPT}{after}")]
        first, last = (backbone.decoder.embed_tokens(ids).expand(count, -1, -1) for ids in around)
        words = torch.cat([first, self.words, last], 1)
        real = torch.cat([ones(first.shape[:2]), self.real, ones(last.shape[:2])], 1)
        return run_decoder(backbone, words, real, self.method.adapter)[:, -1].float()


def encode_inputs(backbone: Backbone, method: Compressor, inputs: dict[str, Any]) -> Tensor:
    """The embeddings [I, D] of rows with one image each, as inputs of `core`. Differentiable."""
    attach(backbone, method)
    return method.embed(EmbeddedImages(backbone, method, inputs))


def encode_texts(backbone: Backbone, method: Compressor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Token ids and mask [T, L] (padded on either side) → embeddings [T, D], as `encode_images`. Differentiable."""
    attach(backbone, method)
    return method.embed(EmbeddedTexts(backbone, method, input_ids, attention_mask))


def _finite(backbone: Backbone, method: Compressor, encode: Callable[[], Tensor]) -> Tensor:
    """What `encode` gives.

    Raises:
        NotFinite: it isn't all numbers.
    """
    embeddings = encode()
    if not bool(embeddings.isfinite().all()):
        raise first_not_finite(backbone, method, encode)
    return embeddings


@torch.no_grad()
def embed_images(backbone: Backbone, method: Compressor, images: Sequence[Image]) -> Tensor:
    """Images → embeddings [I, D], float32, not normalised. Raises `NotFinite` where they are no numbers."""
    inputs = backbone.inputs([SUMMARY_PROMPT] * len(images), [[image] for image in images])
    return _finite(backbone, method, lambda: encode_inputs(backbone, method, dict(inputs)))


@torch.no_grad()
def embed_texts(backbone: Backbone, method: Compressor, texts: Sequence[str]) -> Tensor:
    """Texts → embeddings [T, D], float32, not normalised. Raises `NotFinite` where they are no numbers."""
    batch = backbone.tokenizer(
        list(texts), return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
    ).to(backbone.device)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    return _finite(backbone, method, lambda: encode_texts(backbone, method, ids, mask))


def _ids(backbone: Backbone, text: str, special: bool = False) -> Tensor:
    return torch.tensor(backbone.tokenizer(text, add_special_tokens=special)["input_ids"], device=backbone.device)
