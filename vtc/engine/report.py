"""What became of the visual tokens of a prefill."""

from __future__ import annotations

from dataclasses import dataclass


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

    @property
    def layer_average(self) -> list[float]:
        """Mean over the layers of the visual tokens seen, per row."""
        return [sum(layer[r] for layer in self.layers) / len(self.layers) for r in range(len(self.tokens_in))]
