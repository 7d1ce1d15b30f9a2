"""Bases of the methods that act on what the vision tower made: choosing, merging and resampling its patches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.interface.checks import require
from vtc.interface.compressor import Compressor
from vtc.interface.context import Context
from vtc.interface.needs import ONE_TOWER, PATCH_ATTENTION, Need
from vtc.interface.options import option
from vtc.interface.places import as_smaller
from vtc.interface.resampler import Resampler
from vtc.interface.selection import rank
from vtc.interface.tokens import REGISTER, TokenSequence
from vtc.interface.tower import Tower, TowerUse, View, greatest, resolve_tower_layer, views


@dataclass(frozen=True)
class Condensed:
    """What becomes of the n patches of J pictures.

    Attributes:
        kept: [J, n] bool, those whose visual tokens stay.
        place, merged: [J, K] patches, kept ones among them, and [J, K, C] the tower's features that they have from now
            on, projected anew; None: those of before.
        added: [J, M, C] the tower's features of more tokens, which stand behind the image; None: no more.
        projected: `merged` is in the LLM's width already, [J, K, D].
    """

    kept: Tensor
    place: Tensor | None = None
    merged: Tensor | None = None
    added: Tensor | None = None
    projected: bool = False


class TowerCompressor(Compressor):
    """Chooses or merges the patches of each image before the LLM, by what the tower thinks of them. Override
    `condense`.

    Where an image is seen in tiles (LLaVA-NeXT, InternVL) each of them is a picture of its own, with its own attention,
    and an equal share of the image's budget, as in the code of FasterVLM's and VisionZip's authors; tokens that no
    patch is behind (newlines) go first. Where the projector merges neighbouring patches into one visual token, what is
    chosen among are these tokens.

    Attributes:
        adaptive: it acts without a budget too.
        spatial: it asks where in its picture a visual token is (`Tower.spots`, `Tower.neighbours`).
    """

    needs: ClassVar[tuple[Need, ...]] = (ONE_TOWER, PATCH_ATTENTION)
    adaptive: ClassVar[bool] = False
    spatial: ClassVar[bool] = False
    tower_layer: int = option(
        None,
        "which layer of the tower is read; null: the one that is projected (-2 in LLaVA-1.5)",
        resolve=resolve_tower_layer,
    )

    def layers(self) -> set[int]:
        return {0}

    def tower(self) -> TowerUse:
        return TowerUse(watch=frozenset({self.tower_layer}))

    def condense(self, tower: Tower, count: int | None) -> Condensed:
        """What becomes of the patches of some pictures, of which `count` tokens each are to be left, fewer than there
        are; None (`adaptive`): as many as the method finds right.
        """
        raise NotImplementedError

    def condense_view(self, view: View, tokens: TokenSequence, context: Context) -> Condensed:
        """The same, for a method that compares visual tokens or the question too: `view.image` and `view.token` say
        which of `tokens.images` the patches are."""
        return self.condense(view.tower, view.count)

    def rate_images(self, tower: Tower) -> Tensor:
        """[J] > 0: how complex each picture is, where the budget is a mean over images (`spreads`)."""
        raise NotImplementedError

    def complexity(self, tokens: TokenSequence, context: Context) -> Tensor:
        """[I]: the mean over an image's pictures, each weighed by the visual tokens that it has."""
        total = torch.zeros(len(tokens.images[0]), device=tokens.mask.device)
        sizes = torch.zeros_like(total)
        for view in views(context.seen(), None, context.grids if self.spatial else None):
            rated, size = self.rate_images(view.tower), view.token.shape[1]
            require("a complexity", rated, view.image.shape, read=True)
            total = total.index_add(0, view.image, size * rated.float())
            sizes = sizes.index_add(0, view.image, torch.full_like(rated, size, dtype=torch.float))
        return total / sizes.clamp(min=1)

    def leaves_of_tower(self) -> int | None:
        """Tokens that are left of an image before the LLM; None where there is no budget."""
        return self.tokens

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        count = self.leaves_of_tower()
        if self.scale is None and tokens.fits(count) and not (self.adaptive and count is None):
            return tokens
        tower, (_, real) = context.seen(), tokens.images
        counts = None if count is None else [count] * len(real)
        if self.scale is not None:
            counts = self.counts(tokens, context).tolist()
        kept, changed, values = torch.zeros_like(real), torch.zeros_like(real), None
        if tower.patches is not None and counts is not None:
            kept = self._untouched(tower.patches, real, counts)
        added: list[tuple[View, Tensor]] = []
        for view in views(tower, counts, context.grids if self.spatial else None):
            at = view.image[:, None], view.token
            if view.count is not None and (view.count == 0 or view.count >= view.token.shape[1]):
                kept[at] = view.count > 0
                continue
            condensed = self.condense_view(view, tokens, context)
            kept[at] = condensed.kept
            if condensed.place is not None and condensed.merged is not None:
                values = tokens.visual_hidden() if values is None else values
                where = view.image[:, None], view.token.gather(1, condensed.place)
                new = condensed.merged if condensed.projected else context.project(condensed.merged)
                values = values.index_put(where, new.to(values.dtype))
                changed[at] = condensed.kept
            if condensed.added is not None:
                added.append((view, condensed.added))
        out = (tokens if values is None else tokens.rewrite(values, changed)).keep_visual(kept)
        return _behind(out, added, context) if added else out

    @staticmethod
    def _untouched(patches: Sequence[Tensor], real: Tensor, counts: Sequence[int]) -> Tensor:
        """[I, N] bool: of images with fewer patches than they may leave tokens, the first of those without a patch."""
        most = torch.tensor(counts, device=real.device)
        bare = torch.nn.utils.rnn.pad_sequence([greatest(p) < 0 for p in patches], batch_first=True)
        return bare & (bare.cumsum(1) <= most[:, None] - (real & ~bare).sum(1, keepdim=True))


def _behind(tokens: TokenSequence, added: Sequence[tuple[View, Tensor]], context: Context) -> TokenSequence:
    """Puts what each picture of the views adds, [J, M, C], behind its image, tile by tile."""
    if added[0][0].tower.place is None:  # images, not tiles
        return tokens.insert(context.project(added[0][1]))
    each: dict[tuple[int, int], Tensor] = {}
    for view, new in added:
        each |= zip(zip(view.image.tolist(), view.part, strict=True), new, strict=True)
    rows = [[added[0][1][0, :0]] for _ in range(len(tokens.images[0]))]
    for image, part in sorted(each):
        rows[image].append(each[image, part])
    padded = torch.nn.utils.rnn.pad_sequence([torch.cat(row) for row in rows], batch_first=True)
    out = tokens.insert(context.project(padded))
    lengths = torch.tensor([sum(map(len, row)) for row in rows], device=padded.device)
    real = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
    new = (out.role == REGISTER) & out.mask
    return out.keep((out.mask & ~new) | new.masked_scatter(new, real))


class TowerPruner(TowerCompressor):
    """Keeps the best patches of each image before the LLM, by what the tower thinks of them. Override `rate`."""

    def rate(self, tower: Tower) -> Tensor:
        """[I, N], higher is better. Ties go to the earlier patch."""
        raise NotImplementedError

    def condense(self, tower: Tower, count: int | None) -> Condensed:
        score = self.rate(tower)
        require("a rate", score, tower.patch_features().shape[:2], read=True)
        return Condensed(rank(score) < (count or 0))


class FewerPatches(Compressor):
    """A tower that gives only `tokens` features for an image; override `tower` to say how.

    The prompt still holds a place for each of the N: the engine fills those behind the features, and they go before
    the LLM.
    """

    def layers(self) -> set[int]:
        return set() if self.tokens is None else {0}

    def smaller(self, grid: tuple[int, int] | None) -> tuple[int, int] | None:
        """The grid in which the tokens stand that are left of an image of this grid; None: in none."""
        return None

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        if tokens.fits(self.tokens):
            return tokens
        remade = dataclasses.replace(
            tokens,
            origin=tokens.origin.masked_fill(tokens.visual, -1),
            place=tokens.place.masked_fill(tokens.visual, -1),  # which patches it is made of is the tower's to know
        )
        return as_smaller(remade, [self.smaller(grid) for grid in context.grids], self.tokens or 0)


class TowerResampler(Resampler):
    """Makes M new tokens of each image from what the tower made of it, in the projector's place. Override `forward`."""

    def tower(self) -> TowerUse:
        return TowerUse(projects=False)

    def example(self) -> tuple[Tensor, Context]:
        vision = self.shape.vision
        features = torch.zeros(1, vision.grid_side**2, vision.width)
        states = torch.zeros(1, vision.cls + vision.grid_side**2, vision.width)
        tower = Tower(features, levels=dict.fromkeys(self.tower().levels, states), extra=vision.cls)
        return features, Context(self.shape, grids=[self.shape.grid], tower=tower)

    def forward(self, features: Tensor, context: Context) -> Tensor:
        """The tower's features [I, N, C] of all patches → [I, M, D]; `context.seen()` has what else `tower` asked for.

        Where images are of several sizes, those of one size come together, and `context.seen()` is of all.
        """
        raise NotImplementedError

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        tower = context.seen()
        if tower.patches is None:
            return tokens.replace(self(tower.features, context))
        images = tower.patches_of_images()
        made: list[Tensor] = [images[0]] * len(images)
        for count in {len(image) for image in images}:  # Images of one size are resampled together.
            same = [i for i, image in enumerate(images) if len(image) == count]
            alike = dataclasses.replace(context, grids=[context.grids[i] for i in same])
            for i, new in zip(same, self(torch.stack([images[i] for i in same]), alike), strict=True):
                made[i] = new
        return tokens.replace(torch.stack(made))
