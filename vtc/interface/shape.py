"""Sizes of a backbone and of its vision tower: enough for budgets and FLOPs, without weights."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class BackboneShape:
    """Sizes of a backbone; enough for budgets and FLOPs, without its weights.

    Attributes:
        name: how messages call it.
        depth: decoder layers.
        width: hidden size d of the decoder.
        visual_tokens: per image; None if it depends on the image.
        grid: (height, width) of the visual tokens, None if there is no fixed one.
        intermediate: MLP width of the decoder.
        heads, kv_heads: attention heads of the decoder, and those of keys and values.
        vocab: vocabulary size.
        places: whether the i-th visual tokens of two images of one size stand for the same place.
        vision: {depth, width, intermediate, heads, tokens, cls, image_size, patch_size} of the tower; `cls` is how
            many tokens stand before the patches (CLIP 1, SigLIP 0), `feature_layer` which hidden states are projected,
            `tokens` how many the tower sees of an image, where it sees all images alike and whole,
            `image_size` the side of its images; where they may have any size, that of the example that costs are
            measured on. Of families that cut pictures into tiles all of this is said of one tile, with its
            `tile_tokens`, and beside it how many `tiles` an image has. `projector`: its multiplications for a visual
            token, where it isn't LLaVA's.
        head_dim: width of an attention head, where it is not `width / heads`.
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
    vision: dict[str, int] = field(default_factory=dict)
    places: bool = True
    head_dim: int | None = None

    @property
    def head_width(self) -> int:
        """Width of one attention head of the decoder."""
        return self.head_dim or self.width // self.heads
