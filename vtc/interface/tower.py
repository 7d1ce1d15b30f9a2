"""What a method may ask of the vision tower, and what it sees of it. `vtc.engine.tower_watch` does the watching.

Layers are counted from 0, or from the end as the papers do: -2 is the layer whose output LLaVA-1.5 projects.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vtc.errors import UserError
from vtc.interface.shape import BackboneShape


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
    """What the tower made of I pictures: images in the order of `TokenSequence.images`, or tiles of them (`views`).

    Attributes:
        features: [I, N, C] what the projector read (or would have read) of the N patches, or of the summary tokens;
            carries gradients.
        queries, keys: layer → [I, E + N, C] over the full width, as the layer projects them, without gradients.
        levels: layer → [I, E + N, C], what the layer gave to the next one; carries gradients.
        heads: of the tower's attention.
        extra: E, tokens before the patches: 1 where there is a CLS token, else 0.
        patches: where images are seen in tiles (I tiles then): of each image, which of the I·N patches its visual
            tokens were made of, [L]; -1: of none of them, as newline tokens are. None: each picture is an image.
        place: [J, n], which of the I·N patches are looked at; what is asked for is of them. None: all, I = J, N = n.
    """

    features: Tensor
    queries: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    heads: int = 1
    extra: int = 1
    levels: dict[int, Tensor] = field(default_factory=dict)
    patches: Sequence[Tensor] | None = None
    place: Tensor | None = None

    def __len__(self) -> int:
        """How many images."""
        return len(self.features if self.patches is None else self.patches)

    def patch_features(self) -> Tensor:
        """[I, N, C]: what the projector read of each patch."""
        return self._placed(self.features)

    def patch_keys(self, layer: int) -> Tensor:
        """[I, N, C]: the patches' keys of this layer."""
        return self._placed(self.keys[layer][:, self.extra :])

    def patch_level(self, layer: int) -> Tensor:
        """[I, N, C]: the patches' hidden states behind this layer."""
        return self._placed(self.levels[layer][:, self.extra :])

    def _placed(self, values: Tensor) -> Tensor:
        return values if self.place is None else values.flatten(0, 1)[self.place]

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
        paid = row.softmax(-1)[:, :, 0, self.extra :]
        return paid if self.place is None else self._placed(paid.transpose(1, 2)).transpose(1, 2)

    def images(self, index: Tensor) -> Tower:
        """These images only, [J] of I."""
        if self.patches is not None:
            return dataclasses.replace(self, patches=[self.patches[i] for i in index.tolist()])

        chosen: dict = {
            name: {layer: states.index_select(0, index) for layer, states in getattr(self, name).items()}
            for name in ("queries", "keys", "levels")
        }
        return dataclasses.replace(self, features=self.features.index_select(0, index), **chosen)


def projected_layer(shape: BackboneShape) -> int:
    """The tower's layer (0…) whose output the projector reads."""
    level = shape.vision.feature_layer
    return level + shape.vision.depth if level < 0 else level - 1  # of the hidden states, which begin with layer 0's


def resolve_tower_layer(layer: int | None, shape: BackboneShape) -> int:
    """A user's tower layer as an index from 0; None is the layer whose output the projector reads.

    Raises:
        UserError: not a whole number, or a layer that this tower doesn't have.
    """
    depth = shape.vision.depth
    if layer is None:
        return projected_layer(shape)
    if isinstance(layer, bool) or not isinstance(layer, int) or not -depth <= layer < depth:
        raise UserError(
            f"method.tower_layer={layer}: this tower has {depth} layers; allowed: {-depth} to {depth - 1}, "
            "null (the one that is projected)"
        )
    return layer % depth


@dataclass(frozen=True)
class View:
    """J pictures as the tower saw them, images or tiles of images, of which equally many patches are visual tokens.

    Attributes:
        tower: what it made of those n patches of each.
        image: [J] which image each is (a part of).
        token: [J, n] which of the image's visual tokens each patch is.
        part: of each, its number among the tiles of its image.
        count: tokens that each may leave; None where there is no budget.
    """

    tower: Tower
    image: Tensor
    token: Tensor
    part: Sequence[int]
    count: int | None


def views(tower: Tower, count: int | None) -> Iterator[View]:
    """What the tower saw at once, in groups that can be computed together.

    Args:
        count: tokens that an image may leave. Its tiles have equal shares of it, as far as they have patches, and the
            earlier ones what is over.
    """
    device, patches = tower.features.device, tower.features.shape[1]
    if tower.patches is None:
        number = torch.arange(len(tower), device=device)
        yield View(tower, number, torch.arange(patches, device=device).expand(len(tower), -1), [0] * len(tower), count)
        return
    groups: dict[tuple[int, int | None], list[tuple[int, int, Tensor, Tensor]]] = {}
    for image, patch in enumerate(tower.patches):
        tile = torch.div(patch, patches, rounding_mode="floor")
        token = [(tile == t).nonzero()[:, 0] for t in tile[patch >= 0].unique().tolist()]
        sizes = [len(t) for t in token]
        shares: Sequence[int | None] = [None] * len(sizes) if count is None else evenly(count, sizes)
        for part, (own, share) in enumerate(zip(token, shares, strict=True)):
            groups.setdefault((len(own), share), []).append((image, part, own, patch[own]))
    for (_, share), members in groups.items():
        of, parts, tokens, places = zip(*members, strict=True)
        seen = dataclasses.replace(tower, patches=None, place=torch.stack(places))
        yield View(seen, torch.tensor(of, device=device), torch.stack(tokens), parts, share)


def evenly(count: int, sizes: Sequence[int]) -> list[int]:
    """`count` things dealt to places that hold `sizes` of them, as evenly as these allow, the odd ones to the first."""
    shares = [0] * len(sizes)
    while room := [i for i, size in enumerate(sizes) if shares[i] < size and count]:
        each = max(1, count // len(room))
        for i in room[:count]:
            more = min(each, sizes[i] - shares[i])
            shares[i], count = shares[i] + more, count - more
    return shares
