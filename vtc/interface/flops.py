"""FLOPs by arithmetic, layer by layer. A multiplication and an addition are two; norms, activations, softmax, rotary
embeddings and the lookup of embeddings are left out, as torch's FlopCounterMode leaves them out.

Attention is counted as what it needs, half of the square where it is causal; FlopCounterMode counts the whole square
(`causal=False` here).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vtc.interface.shape import BackboneShape, RecurrentShape

CHUNK = 64  # tokens that kernels of linear attention take at once


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
        lora: FLOPs a token of the LoRA adapter in each layer, or in all alike.
    """

    visual: float
    text: int
    lora: float | tuple[float, ...] = 0.0

    def calls(self, depth: int) -> list[Call]:
        """The same, layer by layer."""
        length = round(self.visual) + self.text
        lora = self.lora if isinstance(self.lora, tuple) else (self.lora,) * depth
        return [Call(i, length, length, lora[i]) for i in range(depth)]


def layer(
    shape: BackboneShape, queries: int, keys: int | None = None, causal: bool = True, number: int | None = None
) -> float:
    """One decoder layer: projections (with grouped keys and values), scores and their sum over values, gated MLP (of
    the experts that a token goes through, and what chooses them).

    Args:
        queries: tokens that go through it.
        keys: tokens in the cache afterwards, `queries` among them; None: `queries`.
        causal: count the half of the square that causal attention needs, and of linear attention its recurrence.
        number: which layer it is, where they differ; None: one that attends.
    """
    keys = queries if keys is None else keys
    head, recurrent = shape.head_width, shape.recurrent
    mlp = shape.width * (3 * shape.intermediate + shape.experts)
    if recurrent is not None and number in recurrent.layers:
        weights = mlp + sum(i * o for i, o in recurrent.sides(shape.width))
        return 2.0 * queries * weights + linear_attention(recurrent, queries, causal)
    weights = mlp + shape.width * head * (shape.heads + 2 * shape.kv_heads) + shape.width * shape.query_width
    pairs = queries * (keys - queries) + (queries * queries / 2 if causal else queries * queries)
    return 2.0 * queries * weights + 4.0 * pairs * shape.heads * head


def linear_attention(sizes: RecurrentShape, queries: int, needed: bool = True) -> float:
    """The gated delta rule over `queries` tokens and the convolution in front of it, without the linear maps.

    Args:
        needed: of each token what the recurrence is: what the state knows of its key, what is written to it, and what
            its query reads. False: what FlopCounterMode counts, the products of transformers' chunks of 64, the last
            one filled up, of two tokens or more (a step of one has none, and solving within a chunk isn't counted), and
            a convolution with as much padding as it reads, on both sides.
    """
    if needed:
        return queries * (6.0 * sizes.state + 2.0 * sizes.kernel * sizes.channels)
    convolved = 2.0 * sizes.kernel * sizes.channels * (queries + sizes.kernel - 1 if queries > 1 else 2)
    if queries == 1:
        return convolved
    key, value = sizes.key_dim, sizes.value_dim
    products = 2 * CHUNK * key + CHUNK * value + 3 * key * value
    return convolved + 2.0 * CHUNK * products * sizes.value_heads * -(-queries // CHUNK)


def head(shape: BackboneShape, tokens: int = 1) -> float:
    """The output embedding; a prefill that is followed by generation needs it for its last token only."""
    return 2.0 * tokens * shape.width * shape.vocab


def next_layer_attention(shape: BackboneShape, tokens: int, queries: int) -> float:
    """What `Context.next_layer_attention` computes: the keys of `tokens`, `queries` among them, and their scores."""
    width = shape.heads * shape.head_width
    keys = 2.0 * tokens * shape.width * shape.kv_heads * shape.head_width
    return keys + 2.0 * queries * (shape.query_width * shape.width + width * tokens)


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
    return sum(layer(shape, c.queries, c.keys, causal, c.layer) + c.queries * c.lora for c in calls)


def uncompressed(shape: BackboneShape, text: int) -> float:
    """Prefill of the decoder with all visual tokens of one image and `text` tokens beside them, and the output row."""
    count = (shape.visual_tokens or 0) + text
    return sum(layer(shape, count, number=number) for number in range(shape.depth)) + head(shape)


def cache_bytes(shape: BackboneShape, layer_tokens: Sequence[int], item: int) -> int:
    """Keys and values of one row that decoding starts with; of layers with linear attention their states (in float32)
    and what the convolution reads again, whatever they have seen.

    Args:
        layer_tokens: tokens in the cache of each decoder layer, text included.
        item: bytes a number.
    """
    held, states, one = sum(layer_tokens[layer] for layer in shape.attending), 0, shape.recurrent
    if one is not None:
        states = len(one.layers) * (4 * one.state + item * one.kernel * one.channels)
    return int(held * 2 * shape.kv_heads * shape.head_width * item) + states
