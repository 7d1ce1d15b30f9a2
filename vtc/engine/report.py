"""What became of the visual tokens of a prefill."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from vtc.interface import TEXT, TokenSequence

if TYPE_CHECKING:
    from torch import Tensor


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
    """

    images: list[int]
    tokens_in: list[int]
    tokens_out: list[int]
    layers: list[list[int]]
    cached: list[list[int]]
    kept: list[list[int]]


@dataclass
class Tally:
    """A report in the making: its numbers as tensors, because reading one would make the prefill wait for the device.

    Attributes:
        images, tokens_in: [B].
        bottleneck: whether visual tokens leave the cache when the prefill is over.
        layers, cached: [B] of each layer.
        kept: [B, L] bool, which of the tokens that came out of the last layer are visual ones left as they were.
        origin: [B, L] of these tokens.
    """

    images: Tensor
    tokens_in: Tensor
    bottleneck: bool = False
    layers: list[Tensor] = field(default_factory=list)
    cached: list[Tensor] = field(default_factory=list)
    kept: Tensor | None = None
    origin: Tensor | None = None

    @classmethod
    def of(cls, visual: Tensor, image: Tensor, bottleneck: bool = False) -> Tally:
        """Before the first layer: `visual` [B, T] bool, and `image` [B, T] as in `TokenSequence`."""
        return cls(image.amax(1) + 1, visual.sum(1), bottleneck)

    @classmethod
    def of_plain_call(cls, visual: Tensor, image: Tensor, depth: int) -> Tally:
        """Of a call in which nothing changes the tokens, on a decoder of `depth` layers."""
        tally = cls.of(visual, image)
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
        )
