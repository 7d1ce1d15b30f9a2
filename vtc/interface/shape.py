"""Sizes of a backbone and of its vision tower: enough for budgets and FLOPs, without weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TowerShape:
    """Sizes of a vision tower. Of families that cut pictures into tiles all of this is said of one tile.

    Attributes:
        depth, width, intermediate, heads: its layers, their hidden size, MLP width and attention heads.
        image_size: the side in pixels of its images; where they may have any size, that of the example that costs are
            measured on.
        patch_size: the side in pixels of a patch.
        feature_layer: which of the hidden states are projected, as the model's configuration counts them.
        cls: how many tokens stand before the patches (CLIP 1, SigLIP 0).
        tokens: how many it sees of an image; None where it sees images in parts, or as large as they are.
        tile_tokens: visual tokens of one tile; None where pictures are not cut.
        tiles: how many an image has, where that is fixed.
        merge: patches along the side of the square that becomes one visual token.
        towers: how many there are; Video-LLaVA has one for pictures and one for videos.
        projector: multiplications of the projector for a visual token; None: those of LLaVA's two layers.
    """

    depth: int
    width: int
    intermediate: int
    heads: int
    image_size: int
    patch_size: int
    feature_layer: int
    cls: int = 0
    tokens: int | None = None
    tile_tokens: int | None = None
    tiles: int = 1
    merge: int = 1
    towers: int = 1
    projector: int | None = None

    @property
    def grid_side(self) -> int:
        """Patches along one side of an image."""
        return self.image_size // self.patch_size

    @property
    def any_size(self) -> bool:
        """Whether it sees each image whole and as large as it is."""
        return self.tokens is None and self.tile_tokens is None


@dataclass(frozen=True)
class RecurrentShape:
    """Sizes of decoder layers with linear attention (the gated delta rule, arXiv 2412.06464).

    Attributes:
        layers: which of the decoder's layers have it; the others attend.
        key_heads, key_dim: heads of queries and keys, and their width.
        value_heads, value_dim: heads of values, each with a state of `key_dim` × `value_dim`, and their width.
        kernel: tokens that the convolution in front of it reads.
    """

    layers: tuple[int, ...]
    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int
    kernel: int

    @property
    def channels(self) -> int:
        """Of the convolution: queries, keys and values."""
        return 2 * self.key_heads * self.key_dim + self.values

    @property
    def values(self) -> int:
        """Width of all values."""
        return self.value_heads * self.value_dim

    @property
    def state(self) -> int:
        """Numbers in the states of a layer."""
        return self.value_heads * self.key_dim * self.value_dim

    def sides(self, width: int) -> list[tuple[int, int]]:
        """(in, out) of each linear map: queries, keys and values; the output's gate; decay and rate; the output."""
        return [
            (width, self.channels),
            (width, self.values),
            (width, self.value_heads),
            (width, self.value_heads),
            (self.values, width),
        ]


@dataclass(frozen=True)
class BackboneShape:
    """Sizes of a backbone; enough for budgets and FLOPs, without its weights.

    Attributes:
        name: how messages call it.
        depth: decoder layers.
        width: hidden size d of the decoder.
        visual_tokens: per image; None if it depends on the image.
        grid: (height, width) of the visual tokens, None if there is no fixed one.
        intermediate: MLP width of the decoder: of the experts that a token goes through, all of them together.
        heads, kv_heads: attention heads of the decoder, and those of keys and values.
        vocab: vocabulary size.
        places: whether the i-th visual tokens of two images of one size stand for the same place.
        vision: of the tower.
        head_dim: width of an attention head, where it is not `width / heads`.
        experts: MLPs of each layer that a router chooses among, token by token; 0: there is one, which all go through.
        gated: whether the map that makes queries makes a gate of the attention's output too.
        recurrent: of layers with linear attention; None: all layers attend.
    """

    name: str
    depth: int
    width: int
    visual_tokens: int | None
    grid: tuple[int, int] | None
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    vision: TowerShape
    places: bool = True
    head_dim: int | None = None
    experts: int = 0
    gated: bool = False
    recurrent: RecurrentShape | None = None

    @property
    def attending(self) -> tuple[int, ...]:
        """Decoder layers whose tokens attend to each other: the others have no attention that a method could read."""
        others = self.recurrent.layers if self.recurrent else ()
        return tuple(layer for layer in range(self.depth) if layer not in others)

    @property
    def query_width(self) -> int:
        """What the map that makes queries puts out for a token."""
        return self.heads * self.head_width * (1 + self.gated)

    @property
    def head_width(self) -> int:
        """Width of one attention head of the decoder."""
        return self.head_dim or self.width // self.heads

    def adapter_parameters(self, rank: int, layer: int = 0) -> int:
        """Of a LoRA adapter in all linear maps of a decoder layer: r·(in + out) each. Experts are no maps of their
        own in transformers, but one tensor, and have none.
        """
        out, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        sides = [(self.width, self.query_width), (self.width, keys), (self.width, keys), (out, self.width)]
        if self.recurrent is not None and layer in self.recurrent.layers:
            sides = self.recurrent.sides(self.width)
        sides += [] if self.experts else [(self.width, self.intermediate)] * 3
        return rank * sum(i + o for i, o in sides)
