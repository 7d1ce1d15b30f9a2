"""What a method may ask of the vision tower, and what it sees of it. `vtc.engine.tower_watch` does the watching.

Layers are counted from 0, or from the end as the papers do: -2 is the layer whose output LLaVA-1.5 projects.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

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
        grid: the same where images have any size: (height, width) of an image in visual tokens → those of the image
            that the tower sees in its place, no more of them.
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
    grid: Callable[[tuple[int, int]], tuple[int, int]] | None = None
    merge: Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    summary: Tensor | None = None
    adapter: str | None = None
    projects: bool = True


@dataclass(frozen=True)
class Tower:
    """What the tower made of T pictures: images in the order of `TokenSequence.images`, tiles of them (`views`), or all
    images one behind the other in a single packed sequence (T = 1, `spans`).

    The projector makes one vector of each of F cells: of one patch, or of m neighbours where it merges them. What is
    read of several patches (attention, keys) is their mean, and what the projector reads of a cell its feature.

    Attributes:
        features: [T, F, C'] what the projector read (or would have read) of the F cells, or of the summary tokens;
            carries gradients.
        queries, keys: layer → [T, E + N, C] over the full width, without gradients: queries as the layer's attention
            has them, keys as it projects them.
        rotated: layer → [T, E + N, C], the keys as the attention has them, where it rotates them by position.
        spans: layer → [S + 1], where the stretches of a packed sequence begin and end that attend to themselves alone:
            images, or windows of them. Empty: each picture attends to all of itself.
        heads: of the tower's attention.
        extra: E, tokens before the patches: 1 where there is a CLS token, else 0.
        levels: layer → [T, E + N, C], what the layer gave to the next one; carries gradients.
        cells: [F, m] the patches of each cell, among the N of its picture; None: each patch is one.
        patches: where an image isn't one picture: of each image, which of the T·F cells its visual tokens were made of,
            [L], or [L, r] where each is a mean of r; -1: of none of them, as newline tokens are. None: each picture is
            an image.
        weights: of the r cells in such a mean, [L, r] of each image, the greatest first. None: there are no means.
        packed: whether it is one such sequence, which others can be put behind.
        place, share: [J, n] or [J, n, r], which of the T·F cells are looked at, and their weights; what is asked for is
            of them. None: all, T = J, F = n.
        spots: [J, n, 2] row and column, in their picture, of the cells that are looked at; None where nobody said.
    """

    features: Tensor
    queries: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    heads: int = 1
    extra: int = 1
    levels: dict[int, Tensor] = field(default_factory=dict)
    rotated: dict[int, Tensor] = field(default_factory=dict)
    spans: dict[int, Tensor] = field(default_factory=dict)
    cells: Tensor | None = None
    patches: Sequence[Tensor] | None = None
    weights: Sequence[Tensor] | None = None
    place: Tensor | None = None
    share: Tensor | None = None
    spots: Tensor | None = None
    packed: bool = False

    def __len__(self) -> int:
        """How many images."""
        return len(self.features if self.patches is None else self.patches)

    def patch_features(self) -> Tensor:
        """[I, N, C']: what the projector read of each visual token's patches."""
        return self._placed(self.features)

    def patches_of_images(self) -> list[Tensor]:
        """[N_i, C] of each image, where `patches` says which cells are its own: what the projector would have read of
        every patch, cell by cell.
        """
        each = 1 if self.cells is None else self.cells.shape[1]
        cells = self.features.flatten(0, 1).unflatten(-1, (each, -1))
        return [cells[own].flatten(0, 1) for own in self.patches or ()]

    def patch_keys(self, layer: int) -> Tensor:
        """[I, N, C]: the patches' keys of this layer, not rotated by position."""
        return self._placed(self._merged(self.keys[layer][:, self.extra :]))

    def patch_level(self, layer: int) -> Tensor:
        """[I, N, C]: the patches' hidden states behind this layer."""
        return self._placed(self._merged(self.levels[layer][:, self.extra :]))

    def _merged(self, values: Tensor) -> Tensor:
        """[T, N, …] of patches → [T, F, …] of cells."""
        return values if self.cells is None else values[:, self.cells].mean(2)

    def _placed(self, values: Tensor) -> Tensor:
        if self.place is None:
            return values
        chosen = values.flatten(0, 1)[self.place]
        if self.share is None:
            return chosen
        return (chosen * self.share[..., None].to(chosen.dtype)).sum(2)

    @torch.no_grad()
    def patch_attention(self, layer: int, heads: int | None = None, by_all: bool = False) -> Tensor:
        """[I, H, N] float32: how much attention each visual token's patches have in this layer.

        Where the tower has a CLS token, what that pays to each patch, softmax over the whole row (itself among them);
        elsewhere what each patch receives, as the mean over all patches that see it, itself among them. Of merged
        patches their mean.

        Args:
            heads: into how many heads the width is split; None: as the tower does.
            by_all: what each patch receives in any tower, CLS being one of those who pay.
        """
        count = heads or self.heads
        q = self.queries[layer].unflatten(-1, (count, -1)).transpose(1, 2)  # [T, H, E + N, d]
        k = self.rotated.get(layer, self.keys[layer]).unflatten(-1, (count, -1)).transpose(1, 2)
        if self.extra and not by_all:
            row = (q[:, :, :1] @ k.transpose(2, 3)).float() * q.shape[-1] ** -0.5
            each = row.softmax(-1)[:, :, 0, self.extra :]
        elif layer in self.spans:
            each = _within(q, k, self.spans[layer])
        else:
            each = received(q, k)[..., self.extra :]
        if self.cells is None and self.place is None:
            return cast(Tensor, each)
        scores: Tensor = self._placed(self._merged(each.transpose(1, 2))).transpose(1, 2)
        return scores

    def neighbours(self) -> Tensor:
        """[J, n, 4]: of each visual token those above, below, left and right of it among the n; itself where there is
        none.
        """
        assert self.spots is not None
        row, column = (self.spots - self.spots.amin(1, keepdim=True) + 1).unbind(-1)
        number = torch.arange(row.shape[1], device=row.device).expand_as(row)
        width = int(column.max()) + 2
        table = row.new_full((len(row), (int(row.max()) + 2) * width), -1).scatter(1, row * width + column, number)
        beside = torch.stack([(row + y) * width + column + x for y, x in ((-1, 0), (1, 0), (0, -1), (0, 1))], -1)
        found = table.gather(1, beside.flatten(1)).view_as(beside)
        return torch.where(found < 0, number[..., None], found)

    def images(self, index: Tensor) -> Tower:
        """These images only, [J] of I."""
        if self.patches is not None:
            rows = index.tolist()
            weights = None if self.weights is None else [self.weights[i] for i in rows]
            return dataclasses.replace(self, patches=[self.patches[i] for i in rows], weights=weights)

        chosen: dict[str, Any] = {
            name: {layer: states.index_select(0, index) for layer, states in getattr(self, name).items()}
            for name in ("queries", "keys", "levels", "rotated")
        }
        return dataclasses.replace(self, features=self.features.index_select(0, index), **chosen)

    def grouped(self, lengths: Sequence[int], sizes: Sequence[int]) -> Tower:
        """The same with images of `sizes` visual tokens, each made of several that follow each other, of `lengths`: an
        image of its tiles.
        """
        if list(lengths) == list(sizes) or self.patches is None:
            return self
        every = torch.cat(list(self.patches)).split(list(sizes))
        weights = None if self.weights is None else torch.cat(list(self.weights)).split(list(sizes))
        return dataclasses.replace(self, patches=every, weights=weights)

    def beside(self, other: Tower) -> Tower:
        """The images of this tower and, behind them, those of another call of it."""
        axis, shift = int(self.packed), self.features.shape[0] * self.features.shape[1]
        joined: dict[str, Any] = {
            name: {layer: torch.cat([state, getattr(other, name)[layer]], axis) for layer, state in states.items()}
            for name in ("queries", "keys", "levels", "rotated")
            for states in (getattr(self, name),)
        }
        if self.packed:
            assert self.cells is not None and other.cells is not None
            joined["cells"] = torch.cat([self.cells, other.cells + self.cells.numel()])
            joined["spans"] = {n: torch.cat([s, other.spans[n][1:] + s[-1]]) for n, s in self.spans.items()}
        if self.patches is not None and other.patches is not None:
            joined["patches"] = [*self.patches, *(torch.where(p < 0, p, p + shift) for p in other.patches)]
        if self.weights is not None and other.weights is not None:
            joined["weights"] = [*self.weights, *other.weights]
        return dataclasses.replace(self, features=torch.cat([self.features, other.features], axis), **joined)


BLOCK = 2**24  # attention weights that are held at once


def received(q: Tensor, k: Tensor) -> Tensor:
    """[B, H, N] float32: the mean attention that each of N tokens receives from all N, of queries and keys
    [B, H, N, d]. So many queries at a time that no more than `BLOCK` weights are held, or one.
    """
    count = q.shape[2]
    total = q.new_zeros(q.shape[:3], dtype=torch.float32)
    for rows in q.split(max(1, BLOCK // max(1, total.numel())), dim=2):
        total += ((rows @ k.transpose(2, 3)).float() * q.shape[-1] ** -0.5).softmax(-1).sum(2)
    return total / count


def _within(q: Tensor, k: Tensor, spans: Tensor) -> Tensor:
    """`received` [1, H, S] in each stretch of a packed sequence by itself; stretches of one length together."""
    bounds = spans.to(q.device)
    lengths = bounds.diff()
    out = q.new_zeros(q.shape[:3], dtype=torch.float32)
    for length in lengths.unique().tolist():
        if length:
            column = bounds[:-1][lengths == length][:, None] + torch.arange(length, device=q.device)  # [W, length]
            inside = received(q[0][:, column].transpose(0, 1), k[0][:, column].transpose(0, 1))
            out[0, :, column] = inside.transpose(0, 1)
    return out


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


def views(
    tower: Tower, counts: Sequence[int] | None, grids: Sequence[tuple[int, int] | None] | None = None
) -> Iterator[View]:
    """What the tower saw at once, in groups that can be computed together.

    Args:
        counts: tokens that each image may leave; None: there is no budget. Its tiles have equal shares of it, as far as
            they have patches, and the earlier ones what is over.
        grids: height and width of each image in visual tokens, None where they are no rectangle (`Context.grids`);
            None: nobody asks for `Tower.spots`.
    """
    device, cells = tower.features.device, tower.features.shape[1]
    own_counts: Sequence[int | None] = [None] * len(tower) if counts is None else counts
    if tower.patches is None:
        index, every = torch.arange(len(tower), device=device), torch.arange(cells, device=device)
        for count in dict.fromkeys(own_counts):
            alike = [image for image, own_count in enumerate(own_counts) if own_count == count]
            number = index if len(alike) == len(tower) else index[alike]
            seen = tower if number is index else tower.images(number)
            if grids is not None:
                spots_of = [_spots(every, every, cells, grids[image]) for image in alike]
                seen = dataclasses.replace(seen, spots=torch.stack(spots_of))
            yield View(seen, number, every.expand(len(alike), -1), [0] * len(alike), count)
        return
    groups: dict[tuple[int, int | None], list[tuple[int, int, Tensor]]] = {}
    for image, patch in enumerate(tower.patches):
        first = greatest(patch)
        tile = torch.div(first, cells, rounding_mode="floor")
        token = [(tile == t).nonzero()[:, 0] for t in tile[first >= 0].unique().tolist()]
        sizes = [len(t) for t in token]
        count = own_counts[image]
        shares: Sequence[int | None] = [None] * len(sizes) if count is None else evenly(count, sizes)
        for part, (own, share) in enumerate(zip(token, shares, strict=True)):
            groups.setdefault((len(own), share), []).append((image, part, own))
    for (_, share), members in groups.items():
        of, parts, tokens = zip(*members, strict=True)
        places = torch.stack([tower.patches[i][own] for i, own in zip(of, tokens, strict=True)])
        weights = tower.weights
        mix = None if weights is None else torch.stack([weights[i][own] for i, own in zip(of, tokens, strict=True)])
        spots: Tensor | None = None
        if grids is not None:
            named = zip(tokens, places, of, strict=True)
            spots = torch.stack([_spots(row, greatest(place), cells, grids[i]) for row, place, i in named])
        seen = dataclasses.replace(tower, patches=None, weights=None, place=places, share=mix, spots=spots)
        yield View(seen, torch.tensor(of, device=device), torch.stack(tokens), parts, share)


def _spots(token: Tensor, cell: Tensor, cells: int, grid: tuple[int, int] | None) -> Tensor:
    """[n, 2]: row and column of some visual tokens of one picture: by their number `token` where the image is a `grid`,
    else by their `cell` in a square tile of so many; rows and columns that have no token don't count.
    """
    if grid is not None:
        return torch.stack([token // grid[1], token % grid[1]], -1)
    at, side = cell % cells, round(cells**0.5)
    return torch.stack([line.unique(return_inverse=True)[1] for line in (at // side, at % side)], -1)


def greatest(patch: Tensor) -> Tensor:
    """[L]: of visual tokens' cells, [L] or [L, r], those with the greatest weight."""
    return patch if patch.ndim == 1 else patch[:, 0]


def evenly(count: int, sizes: Sequence[int]) -> list[int]:
    """`count` things dealt to places that hold `sizes` of them, as evenly as these allow, the odd ones to the first."""
    shares = [0] * len(sizes)
    while room := [i for i, size in enumerate(sizes) if shares[i] < size and count]:
        each = max(1, count // len(room))
        for i in room[:count]:
            more = min(each, sizes[i] - shares[i])
            shares[i], count = shares[i] + more, count - more
    return shares
