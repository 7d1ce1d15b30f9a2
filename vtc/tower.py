"""What a method may ask of the vision tower, and what it sees of it. `vtc.engine.tower` does the watching.

Layers are counted from 0, or from the end as the papers do: -2 is the layer whose output LLaVA-1.5 projects.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from vtc.compressor import VISUAL, Compressor, Context, Resampler, TokenPruner, TokenSequence
from vtc.errors import UserError

if TYPE_CHECKING:
    from vtc.backbones.base import BackboneShape


@dataclass(frozen=True)
class TowerUse:
    """What a method asks of the tower while the model's own call of it runs.

    Attributes:
        watch: layers (0…) whose queries and keys it wants to see.
        levels: layers (0…) whose output it wants to see.
        image_size: side in pixels to which images are resized before the tower; None: as the processor made them.
        merge: called in each layer up to the one that is projected, between attention and MLP (ToMe):
            `merge(layer, hidden [I, T, C], keys [I, H, T, d], size [I, T]) -> (hidden [I, T', C], size [I, T'])`. The
            tokens before the patches (CLS) come first and stay; `size` says how many patches each token stands for,
            and attention is proportional to it. None: no merging.
        summary: [M, C] tokens that run through the tower behind the patches; what is projected is what it makes of
            them, and nothing else. None: the patches are projected.
        adapter: the LoRA adapter under which the tower runs; None for the plain weights.
        projects: False: the method takes the place of the model's projector, which isn't run; what stands in the
            prompt until the method replaces it (before the LLM) is zeros.
    """

    watch: frozenset[int] = frozenset()
    levels: frozenset[int] = frozenset()
    image_size: int | None = None
    merge: Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    summary: Tensor | None = None
    adapter: str | None = None
    projects: bool = True


@dataclass(frozen=True)
class Tower:
    """What the tower made of I images, in the order of `TokenSequence.images`.

    Attributes:
        features: [I, N, C] what the projector read (or would have read) of the N patches, or of the summary tokens;
            carries gradients.
        queries, keys: layer → [I, E + N, C] over the full width, as the layer projects them, without gradients.
        levels: layer → [I, E + N, C], what the layer gave to the next one; carries gradients.
        heads: of the tower's attention.
        extra: E, tokens before the patches: 1 where there is a CLS token, else 0.
    """

    features: Tensor
    queries: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    heads: int = 1
    extra: int = 1
    levels: dict[int, Tensor] = field(default_factory=dict)

    def patch_keys(self, layer: int) -> Tensor:
        """[I, N, C]: the patches' keys of this layer."""
        return self.keys[layer][:, self.extra :]

    def patch_level(self, layer: int) -> Tensor:
        """[I, N, C]: the patches' hidden states behind this layer."""
        return self.levels[layer][:, self.extra :]

    @torch.no_grad()
    def cls_attention(self, layer: int, heads: int | None = None) -> Tensor:
        """[I, H, N] float32: what CLS pays to each patch, softmax over the whole row (itself among them).

        Args:
            heads: into how many heads the width is split; None: as the tower does.
        """
        count = heads or self.heads
        q = self.queries[layer][:, :1].unflatten(-1, (count, -1)).transpose(1, 2)  # [I, H, 1, d]
        k = self.keys[layer].unflatten(-1, (count, -1)).transpose(1, 2)
        row = (q @ k.transpose(2, 3)).float() * q.shape[-1] ** -0.5
        return row.softmax(-1)[:, :, 0, self.extra :]

    def images(self, index: Tensor) -> Tower:
        """These images only, [J] of I."""

        def chosen(layers: dict[int, Tensor]) -> dict[int, Tensor]:
            return {layer: t.index_select(0, index) for layer, t in layers.items()}

        return dataclasses.replace(
            self,
            features=self.features.index_select(0, index),
            queries=chosen(self.queries),
            keys=chosen(self.keys),
            levels=chosen(self.levels),
        )


def projected_layer(shape: BackboneShape) -> int:
    """The tower's layer (0…) whose output the projector reads."""
    level = shape.vision["feature_layer"]
    return level + shape.vision["depth"] if level < 0 else level - 1  # of the hidden states, which begin with layer 0's


def resolve_tower_layer(layer: int | None, shape: BackboneShape) -> int:
    """A user's tower layer as an index from 0; None is the layer whose output the projector reads.

    Raises:
        UserError: not a whole number, or a layer that this tower doesn't have.
    """
    depth = shape.vision["depth"]
    if layer is None:
        return projected_layer(shape)
    if isinstance(layer, bool) or not isinstance(layer, int) or not -depth <= layer < depth:
        raise UserError(
            f"method.tower_layer={layer}: this tower has {depth} layers; allowed: {-depth} to {depth - 1}, "
            "null (the one that is projected)"
        )
    return layer % depth


def require_patches(method: str, shape: BackboneShape) -> None:
    """Raises `UserError` unless each patch of the tower is one visual token (CLS may be one too), in a fixed number."""
    vision = shape.vision
    if vision.get("towers", 1) > 1:
        raise UserError(f"method={method}: it reads the vision tower, and {shape.name} has {vision['towers']} of them")
    patches = _patches(shape)
    if shape.visual_tokens not in (patches, patches + vision.get("cls", 0)):
        has = "no fixed number of them" if shape.visual_tokens is None else f"{shape.visual_tokens} of {patches}"
        raise UserError(f"method={method}: it needs one visual token a patch; {shape.name} has {has}")


def require_cls(method: str, shape: BackboneShape) -> None:
    """Raises `UserError` unless the tower has a CLS token and every patch is one visual token."""
    if not shape.vision.get("cls"):
        raise UserError(
            f"method={method}: it scores patches by CLS attention, and the tower of {shape.name} has no CLS"
        )
    patches = _patches(shape)
    if shape.visual_tokens != patches:
        raise UserError(
            f"method={method}: it needs one visual token a patch; {shape.name} has {shape.visual_tokens} of {patches}"
        )


def _patches(shape: BackboneShape) -> int:
    """What the tower cuts an image, or the example of one, into."""
    vision = shape.vision
    if "tokens" in vision:
        return vision["tokens"] - vision.get("cls", 0)
    return (vision.get("image_size", 0) // vision.get("patch_size", 1)) ** 2


class TowerPruner(TokenPruner):
    """Keeps the best patches of each image before the LLM, by what the tower thinks of them. Override `score`.

    Args:
        tower_layer: whose CLS attention it reads; None: the layer whose output is projected (-2 in LLaVA-1.5).
    """

    needs_cls: ClassVar[bool] = True

    def __init__(self, tokens: int | None, shape: BackboneShape, tower_layer: int | None = None) -> None:
        super().__init__(tokens, shape, layer=0)
        if self.needs_cls:
            require_cls(self.name, shape)
        self.tower_layer = resolve_tower_layer(tower_layer, shape)

    def tower(self) -> TowerUse:
        return TowerUse(watch=frozenset({self.tower_layer}))


class FewerPatches(Compressor):
    """A tower that gives only `tokens` features for an image; override `tower` to say how.

    The prompt still holds a place for each of the N: the engine fills those behind the features, and they go before
    the LLM.
    """

    def layers(self) -> set[int]:
        return set() if self.tokens is None else {0}

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        _, real = tokens.images
        if self.tokens is None or not real.numel() or self.tokens >= real.shape[1]:
            return tokens
        made = tokens.per_token(real & (real.cumsum(1) <= self.tokens), False)
        tokens = dataclasses.replace(tokens, origin=tokens.origin.masked_fill(tokens.visual, -1))
        return tokens.keep(made | ((tokens.role != VISUAL) & tokens.mask))


class TowerResampler(Resampler):
    """Makes M new tokens of each image from what the tower made of it, in the projector's place. Override `forward`."""

    def tower(self) -> TowerUse:
        return TowerUse(projects=False)

    def forward(self, features: Tensor, context: Context) -> Tensor:
        """The tower's features [I, N, C] → [I, M, D]; `context.seen()` has what else `tower` asked for."""
        raise NotImplementedError

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        if not tokens.images[0].numel():
            return tokens
        return tokens.replace(self(context.seen().features, context))
