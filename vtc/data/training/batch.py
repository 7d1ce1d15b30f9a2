"""What one training step reads: tokens, pixels, answers, captions."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

IGNORE = -100  # the label of what is not answered


@dataclass(frozen=True)
class Part:
    """Which share of a step's global batch: the rank and the micro-batch together."""

    index: int = 0
    count: int = 1

    def of(self, n: int) -> slice:
        """Its rows of `n`: contiguous; the sizes of parts differ by one at most."""
        least, more = divmod(n, self.count)
        start = self.index * least + min(self.index, more)
        return slice(start, start + least + (self.index < more))


WHOLE = Part()


@dataclass
class Batch:
    """One part of a step's global batch.

    Attributes:
        inputs: what the backbone's `core` takes: input_ids [B, L], attention_mask [B, L], pixel_values, and whatever
            the family needs beside; position_ids [B, L] where the rows are packed.
        labels: [B, L], -100 outside the answers; all of them -100 where nothing is answered.
        blocks: [B, L] of packed rows: 0 the prefix with the image, 1… the questions; None where a row is one sequence.
        captions: (token ids [B, Lc], mask [B, Lc]), left-padded: one caption of each row's image, for the contrastive
            loss; None without.
        embed_at: [B] where a packed row's image embedding is read, at the end of a block of its own; None without.
        kinds: for each row the kind of each of its questions, where the source knows.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    blocks: Tensor | None = None
    captions: tuple[Tensor, Tensor] | None = None
    embed_at: Tensor | None = None
    kinds: list[list[str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def input_ids(self) -> Tensor:
        return self.inputs["input_ids"]

    @property
    def attention_mask(self) -> Tensor:
        return self.inputs["attention_mask"]

    @property
    def answers(self) -> int:
        """Tokens that the next-token loss counts."""
        return int((self.labels[:, 1:] != IGNORE).sum())

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return replace(self, **{f.name: on_device(getattr(self, f.name), device) for f in fields(self)})

    def rows(self, share: slice) -> Batch:
        """Some of the rows. Every input has equally many entries for each row: a picture, or the frames of a video."""
        first, last, _ = share.indices(len(self))
        entries = {name: len(tensor) // len(self) for name, tensor in self.inputs.items()}
        return Batch(
            inputs={name: tensor[first * entries[name] : last * entries[name]] for name, tensor in self.inputs.items()},
            labels=self.labels[share],
            blocks=None if self.blocks is None else self.blocks[share],
            captions=None if self.captions is None else (self.captions[0][share], self.captions[1][share]),
            embed_at=None if self.embed_at is None else self.embed_at[share],
            kinds=self.kinds[share],
        )


def on_device(value: Any, device: torch.device) -> Any:
    """On a device: a tensor, an object with `to(device)`, a dict or a tuple of these; anything else as it is."""
    if isinstance(value, dict):
        return {name: on_device(part, device) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(on_device(part, device) for part in value)
    return value.to(device) if hasattr(value, "to") else value
