"""FLOPs by arithmetic, layer by layer. A multiplication and an addition are two; norms, activations, softmax, rotary
embeddings and the lookup of embeddings are left out, as torch's FlopCounterMode leaves them out.

Attention is counted as what it needs, half of the square where it is causal; FlopCounterMode counts the whole square
(`causal=False` here).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vtc.interface.shape import BackboneShape


@dataclass(frozen=True)
class Call:
    """One pass of one decoder layer over one row.

    Attributes:
        layer: 0 …
        queries: tokens that go through it.
        keys: tokens that they may attend to: `queries` and what the cache holds.
        lora: FLOPs a token of the LoRA adapters that are active in it.
    """

    layer: int
    queries: int
    keys: int
    lora: float = 0.0


@dataclass(frozen=True)
class OwnPass:
    """One pass over all layers of the decoder that a method runs itself for one image, without a cache.

    Attributes:
        visual: visual tokens in it, those that the method made among them.
        text: other tokens.
        lora: FLOPs a token of the LoRA adapter in each layer.
    """

    visual: float
    text: int
    lora: float = 0.0

    def calls(self, depth: int) -> list[Call]:
        """The same, layer by layer."""
        length = round(self.visual) + self.text
        return [Call(i, length, length, self.lora) for i in range(depth)]


def layer(shape: BackboneShape, queries: int, keys: int | None = None, causal: bool = True) -> float:
    """One decoder layer: projections (with grouped keys and values), scores and their sum over values, gated MLP (of
    the experts that a token goes through, and what chooses them).

    Args:
        queries: tokens that go through it.
        keys: tokens in the cache afterwards, `queries` among them; None: `queries`.
        causal: count the half of the square that causal attention needs.
    """
    keys = queries if keys is None else keys
    head = shape.head_width
    weights = shape.width * (head * (2 * shape.heads + 2 * shape.kv_heads) + 3 * shape.intermediate + shape.experts)
    pairs = queries * (keys - queries) + (queries * queries / 2 if causal else queries * queries)
    return 2.0 * queries * weights + 4.0 * pairs * shape.heads * head


def head(shape: BackboneShape, tokens: int = 1) -> float:
    """The output embedding; a prefill that is followed by generation needs it for its last token only."""
    return 2.0 * tokens * shape.width * shape.vocab


def next_layer_attention(shape: BackboneShape, tokens: int, queries: int) -> float:
    """What `Context.next_layer_attention` computes: the keys of `tokens`, `queries` among them, and their scores."""
    width = shape.heads * shape.head_width
    keys = 2.0 * tokens * shape.width * shape.kv_heads * shape.head_width
    return keys + 2.0 * queries * width * (shape.width + tokens)


def vision(shape: BackboneShape, images: int = 1) -> float:
    """The vision tower (patch convolution, all of its layers: transformers runs them all, whichever is read) and the
    projector, for `images` images: as many multiplications a visual token as the family says, or LLaVA's two layers."""
    v = shape.vision
    if v.tokens is None:  # a tower that sees an image in parts, or as large as it is
        return 0.0
    t, w = v.tokens, v.width
    patches = v.grid_side**2
    stem = 2.0 * patches * 3 * v.patch_size**2 * w
    per_layer = 2.0 * t * (4 * w * w + 2 * w * v.intermediate) + 4.0 * t * t * w
    multiplications = v.projector or w * shape.width + shape.width**2
    projector = 2.0 * (shape.visual_tokens or patches) * multiplications
    return images * (v.tiles * (stem + v.depth * per_layer) + projector)


def total(shape: BackboneShape, calls: Sequence[Call], causal: bool = True) -> float:
    """Decoder layers that ran, adapters included."""
    return sum(layer(shape, c.queries, c.keys, causal) + c.queries * c.lora for c in calls)


def uncompressed(shape: BackboneShape, text: int) -> float:
    """Prefill of the decoder with all visual tokens of one image and `text` tokens beside them, and the output row."""
    return shape.depth * layer(shape, (shape.visual_tokens or 0) + text) + head(shape)


def cache_bytes(shape: BackboneShape, layer_tokens: Sequence[int], item: int) -> int:
    """Keys and values of one row that decoding starts with.

    Args:
        layer_tokens: tokens in the cache of each decoder layer, text included.
        item: bytes a number.
    """
    return int(sum(layer_tokens) * 2 * shape.kv_heads * shape.head_width * item)
