"""What became of the visual tokens of a prefill."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import torch

from vtc.engine.call import Images
from vtc.interface import TEXT, TokenSequence

if TYPE_CHECKING:
    from torch import Tensor

Grid = tuple[int, int] | None


@dataclass
class Report:
    """What a prefill truly kept.

    Attributes:
        images: images in each row.
        tokens_in: visual tokens of each row before anything.
        tokens_out: visual tokens and registers of each row that are left to answer from: those of the last layer in
            `cached`.
        layers: visual tokens and registers of each row that a decoder layer sees in the prefill, a list per layer.
        cached: those that its cache holds when the prefill is over: `layers`, but behind a bottleneck.
        kept: for each row, which of its tokens (indices in input_ids) are visual ones that were left as they were.
        holders: for each image of each row and each of its visual tokens (0…, in the image's own order), which of these
            holds it in the end: itself where it was kept, the first member of its group where it was merged, -1 where
            it was dropped.
        made: for each image of each row, how many of `tokens_out` hold none of its tokens in particular: registers,
            resampled and summary tokens.
        grids: (height, width) of each image of each row in visual tokens; None where they are in no grid.
    """

    images: list[int]
    tokens_in: list[int]
    tokens_out: list[int]
    layers: list[list[int]]
    cached: list[list[int]]
    kept: list[list[int]]
    holders: list[list[list[int]]]
    made: list[list[int]]
    grids: list[list[Grid]]


@dataclass
class Tally:
    """A report in the making: its numbers as tensors, because reading one would make the prefill wait for the device.

    Attributes:
        images, tokens_in: [B].
        bottleneck: whether visual tokens leave the cache when the prefill is over.
        layers, cached: [B] of each layer.
        kept: [B, L] bool, which of the tokens that came out of the last layer are visual ones left as they were.
        origin: [B, L] of these tokens.
        visual, image: [B, T] as the user's sequence has them.
        grids: of the images, row by row.
        last: the tokens that came out of the last layer; None: all of the user's.
    """

    images: Tensor
    tokens_in: Tensor
    visual: Tensor
    image: Tensor
    grids: Sequence[Grid] = ()
    bottleneck: bool = False
    layers: list[Tensor] = field(default_factory=list)
    cached: list[Tensor] = field(default_factory=list)
    kept: Tensor | None = None
    origin: Tensor | None = None
    last: TokenSequence | None = None

    @classmethod
    def of(cls, images: Images, bottleneck: bool = False) -> Tally:
        """Before the first layer."""
        visual, image = images.visual, images.image
        return cls(image.amax(1) + 1, visual.sum(1), visual, image, images.grids, bottleneck)

    @classmethod
    def of_plain_call(cls, images: Images, depth: int) -> Tally:
        """Of a call in which nothing changes the tokens, on a decoder of `depth` layers."""
        tally, visual = cls.of(images), images.visual
        tally.layers = tally.cached = [tally.tokens_in] * depth
        tally.kept, tally.origin = visual, torch.arange(visual.shape[1], device=visual.device).expand_as(visual)
        return tally

    def add(self, tokens: TokenSequence, layers: int) -> None:
        """So many layers more see these tokens."""
        seen = (tokens.role != TEXT) & tokens.mask
        self.layers += [seen.sum(1)] * layers
        self.cached += [self._lasting(tokens, seen).sum(1)] * layers

    def close(self, tokens: TokenSequence) -> None:
        """Behind the last layer."""
        self.kept, self.origin = self._lasting(tokens, tokens.visual) & (tokens.origin >= 0), tokens.origin
        bare = tokens.hidden.new_empty(*tokens.mask.shape, 0)  # a report must not hold the states in memory
        self.last = dataclasses.replace(tokens, hidden=bare, deep=None)

    def _lasting(self, tokens: TokenSequence, some: Tensor) -> Tensor:
        """Of `some` tokens [B, L] those that stay when the prefill is over."""
        return some & ~tokens.visual if self.bottleneck else some

    def report(self) -> Report:
        assert self.kept is not None and self.origin is not None
        return Report(
            images=self.images.tolist(),
            tokens_in=self.tokens_in.tolist(),
            tokens_out=self.cached[-1].tolist(),
            layers=[count.tolist() for count in self.layers],
            cached=[count.tolist() for count in self.cached],
            kept=[origin[kept].tolist() for origin, kept in zip(self.origin, self.kept, strict=True)],
            holders=self._holders(),
            made=self._made(),
            grids=self._grids(),
        )

    def _holders(self) -> list[list[list[int]]]:
        """See `Report.holders`."""
        if self.last is None:
            holder = torch.arange(self.visual.shape[1], device=self.visual.device).expand_as(self.visual)
        else:
            tokens = self.last
            left = self._lasting(tokens, tokens.visual)
            # Column 0 stands for the place -1, which no token of the user's has.
            alive = torch.zeros(len(left), tokens.holder.shape[1] + 1, dtype=torch.bool, device=left.device)
            alive.scatter_(1, (tokens.place + 1).masked_fill(~left, 0), True)
            alive[:, 0] = False
            holder = torch.where(alive.gather(1, tokens.holder + 1), tokens.holder, -1)
        visual, image = self.visual.to(holder.device), self.image.to(holder.device)
        out = []
        for row, count in enumerate(self.images.tolist()):
            own = [(visual[row] & (image[row] == i)).nonzero()[:, 0] for i in range(count)]
            number = torch.full_like(holder[row], -1)
            for places in own:
                number[places] = torch.arange(len(places), device=number.device)
            out.append([number[holder[row, p]].masked_fill(holder[row, p] < 0, -1).tolist() for p in own])
        return out

    def _grids(self) -> list[list[Grid]]:
        """See `Report.grids`."""
        grids = iter(self.grids)
        return [list(islice(grids, count)) for count in self.images.tolist()]

    def _made(self) -> list[list[int]]:
        """See `Report.made`."""
        counts = self.images.tolist()
        if self.last is None:
            return [[0] * count for count in counts]
        tokens = self.last
        new = self._lasting(tokens, (tokens.role != TEXT) & tokens.mask) & (tokens.place < 0)
        return [[int((new[b] & (tokens.image[b] == i)).sum()) for i in range(n)] for b, n in enumerate(counts)]
