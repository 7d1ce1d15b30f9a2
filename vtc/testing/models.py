"""Random-weight LLaVAs built in memory, small enough to run hundreds of checks on two cores, and inputs for any
backbone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.backbones import wrap
from vtc.backbones.base import Backbone
from vtc.backbones.words import BOS, IMAGE, PAD, tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}


def tiny_decoder(kind: str, width: int = 32, depth: int = 4, heads: int = 4, kv_heads: int = 2) -> Any:
    """The config of a language model: llama, mistral or qwen2."""
    from transformers import AutoConfig

    return AutoConfig.for_model(
        kind,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=width // heads,
        vocab_size=64,
        max_position_embeddings=2048,
        sliding_window=None,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=None,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )


def drawn(make: Callable[[], Any], seed: int = 0, attention: str | None = None) -> Any:
    """The model that `make` draws from this seed, in eval mode, generating up to the length asked for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
    if attention is not None:
        model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.eval()


def tiny_backbone(
    width: int = 32,
    depth: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    grid: int = 4,
    attention: str = "sdpa",
    seed: int = 0,
    tower: str = "clip",
) -> Backbone:
    """A `LlavaForConditionalGeneration` of random weights with `grid`² visual tokens, its processor, in eval mode.

    Weights are drawn wide enough (0.2) for attention to differ from token to token.

    Args:
        tower: `clip`, or `siglip`, which has no CLS token.
    """
    import transformers

    patch = 4
    side = grid * patch
    kind: Any = transformers.CLIPVisionConfig if tower == "clip" else transformers.SiglipVisionConfig
    strategy: Any = "default" if tower == "clip" else "full"
    config = transformers.LlavaConfig(
        vision_config=kind(image_size=side, patch_size=patch, **TOWER),
        text_config=tiny_decoder("llama", width, depth, heads, kv_heads),
        image_token_id=IMAGE,  # type: ignore[call-arg]
        vision_feature_layer=-2,
        vision_feature_select_strategy=strategy,
    )
    model = drawn(lambda: transformers.LlavaForConditionalGeneration(config), seed, attention)
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(
            size={"height": side, "width": side}, crop_size={"height": side, "width": side}, do_center_crop=False
        ),
        tokenizer=tokenizer(),
        patch_size=patch,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(tower == "clip"),
    )
    return wrap(model, processor)


@dataclass
class Extent:
    """How much of the random rows is made, to find the smallest case in which something shows.

    Attributes:
        chosen: which of the rows, by their number; None: all.
        words: of each run of text at most so many.
        made: what was made, a list of rows for each call: (words before, images, words after).
    """

    chosen: Sequence[int] | None = None
    words: int | None = None
    made: list[list[tuple[int, int, int]]] = field(default_factory=list)

    def __str__(self) -> str:
        """The rows of the last call, in words."""
        shapes = [f"{b} words, {i} image{'s' * (i != 1)}, {a} words" for b, i, a in (self.made or [[]])[-1]]
        return f"{len(shapes)} row{'s' * (len(shapes) != 1)} ({'; '.join(shapes)})"


_extent: ContextVar[Extent | None] = ContextVar("extent", default=None)


@contextmanager
def extent(limits: Extent) -> Iterator[Extent]:
    """`rows`, and all that are made of them, make no more inside."""
    token = _extent.set(limits)
    try:
        yield limits
    finally:
        _extent.reset(token)


# Inputs that run along the sequence; the others are images.
ALONG = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")


def full(backbone: Backbone) -> int:
    """Visual tokens per image of a backbone that has a fixed number."""
    assert backbone.shape.visual_tokens is not None
    return backbone.shape.visual_tokens


def words(backbone: Backbone, count: int, generator: torch.Generator) -> list[int]:
    """Ids of `count` random ordinary tokens."""
    special = {*backbone.placeholders, *backbone.tokenizer.get_added_vocab().values(), *range(10)}
    ordinary = [i for i in range(min(backbone.shape.vocab, 64)) if i not in special]
    return [ordinary[i] for i in torch.randint(len(ordinary), (count,), generator=generator).tolist()]


def picture(backbone: Backbone, generator: torch.Generator, size: tuple[int, int] | None = None) -> Image:
    """An image of noise, (height, width) in pixels; None: as large as the backbone's images are."""
    from PIL import Image

    side = backbone.image_size or backbone.shape.vision.image_size
    noise = torch.randint(0, 256, (*(size or (side, side)), 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


@dataclass(frozen=True)
class Row:
    """A row of ids with its images: what `collate` makes inputs of.

    Attributes:
        tokens: what runs along the sequence, a list of L numbers each (see `ALONG`).
    """

    tokens: dict[str, list[int]]
    images: list[Image] = field(default_factory=list)

    def __add__(self, other: Row) -> Row:
        names = dict.fromkeys([*self.tokens, *other.tokens])
        joined = {n: self._of(n) + other._of(n) for n in names}
        return Row(joined, self.images + other.images)

    def _of(self, name: str) -> list[int]:
        return self.tokens.get(name, [0] * len(self.tokens["input_ids"]))


def text_row(ids: Sequence[int]) -> Row:
    return Row({"input_ids": list(ids), "attention_mask": [1] * len(ids)})


def image_row(backbone: Backbone, *images: Image) -> Row:
    """The tokens that stand for images which follow each other, with whatever the family puts around them."""
    inputs = backbone.encode([backbone.image_text * len(images)], [images])
    start = int(inputs["input_ids"][0, 0] == backbone.tokenizer.bos_token_id)
    return Row({n: inputs[n][0, start:].tolist() for n in ALONG if n in inputs}, [*images])


def collate(backbone: Backbone, rows: Sequence[Row], padding: str = "left") -> dict[str, Tensor]:
    """Rows as the model's inputs, padded to one length."""
    length = max(len(r.tokens["input_ids"]) for r in rows)
    pad = PAD if backbone.image_token_id != PAD else 1
    out = {}
    for name in dict.fromkeys(n for r in rows for n in r.tokens):
        out[name] = torch.full((len(rows), length), pad if name == "input_ids" else 0)
        for n, row in enumerate(rows):
            ids = torch.tensor(row._of(name))
            out[name][n, length - len(ids) :] = ids
            if padding == "right":
                out[name][n] = out[name][n].roll(len(ids) - length)
    return out | media(backbone, [row.images for row in rows])


def media(backbone: Backbone, images: Sequence[Sequence[Image]]) -> dict[str, Tensor]:
    """The part of the inputs that is made of images, those of each row."""
    if not any(images):
        return {}
    inputs = backbone.encode([backbone.image_text * len(row) for row in images], images)
    return {name: value for name, value in inputs.items() if name not in ALONG}


def rows(
    backbone: Backbone,
    before: Sequence[int] = (2, 5, 3),
    after: Sequence[int] = (6, 3, 9),
    images: Sequence[int] = (1, 1, 1),
    seed: int = 1,
    sizes: Sequence[tuple[int, int] | None] = (None,),
) -> list[Row]:
    """Random rows: `before` words, `images` images, `after` words; images in turn of these sizes."""
    generator = torch.Generator().manual_seed(seed)
    several, size = [], itertools.cycle(sizes)
    limits = _extent.get() or Extent()
    most = max(*before, *after) if limits.words is None else limits.words
    shapes = [(min(b, most), i, min(a, most)) for b, i, a in zip(before, images, after, strict=True)]
    shapes = [shape for n, shape in enumerate(shapes) if limits.chosen is None or n in limits.chosen]
    limits.made.append(shapes)
    for b, i, a in shapes:
        row = text_row(words(backbone, b, generator))
        if i:
            row += image_row(backbone, *(picture(backbone, generator, next(size)) for _ in range(i)))
        several.append(row + text_row(words(backbone, a, generator)))
    return several


def batch(backbone: Backbone, *counts: Any, padding: str = "left", **options: Any) -> dict[str, Tensor]:
    """Random rows (see `rows`, whose arguments it takes) as inputs: input_ids, attention_mask [B, L], and pixel_values
    and what else the family has where there is an image.
    """
    return collate(backbone, rows(backbone, *counts, **options), padding)


def packed(backbone: Backbone, questions: int = 3, padding: int = 2) -> tuple[dict[str, Tensor], Tensor]:
    """Two rows of an image with independent questions behind it, right-padded, and their block ids."""
    several, blocks, labels, places = zip(*packed_rows(backbone, questions), strict=True)
    length = max(map(len, blocks)) + padding

    def padded(values: list[int], fill: int) -> list[int]:
        return values + [fill] * (length - len(values))

    inputs = collate(backbone, several, "right")
    inputs = {n: F.pad(v, (0, padding)) if n in ALONG else v for n, v in inputs.items()}
    inputs["position_ids"] = torch.stack([F.pad(p, (0, length - p.shape[-1])) for p in places], -2)
    inputs["labels"] = torch.tensor([padded(row, -100) for row in labels])
    return inputs, torch.tensor([padded(row, 0) for row in blocks])


def packed_rows(backbone: Backbone, questions: int = 3) -> Iterator[tuple[Row, list[int], list[int], Tensor]]:
    """Of two rows each: itself, its block ids, its labels, and its positions [L] or [3, L]: every question goes on
    where the image ends.
    """
    generator = torch.Generator().manual_seed(5)
    for n in range(2):
        row = text_row(words(backbone, 2, generator)) + image_row(backbone, picture(backbone, generator))
        place = backbone.positions(collate(backbone, [row]))[..., 0, :]
        behind = backbone.positions(collate(backbone, [row + text_row([10])]))[..., 0, -1:]
        block, label = [0] * place.shape[-1], [-100] * place.shape[-1]
        for q in range(1, questions + 1):
            question = words(backbone, 3 + q + n, generator)
            row += text_row(question)
            block += [q] * len(question)
            label += question  # the first token is learnt too
            place = torch.cat([place, behind + torch.arange(len(question))], -1)
        yield row, block, label, place
