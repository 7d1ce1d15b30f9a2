"""Token sequences with random hidden states, for tests of one reduction without a backbone."""

from __future__ import annotations

import torch

from vtc.interface import VISUAL, TokenSequence


def layout(*images: int, before: int = 2, after: int = 3) -> list[int]:
    """A row: text, images of so many visual tokens next to each other, text. -1 is text, 0, 1… the image."""
    return [-1] * before + [i for i, n in enumerate(images) for _ in range(n)] + [-1] * after


def sequence(rows: list[list[int]], width: int = 8, seed: int = 0, compact: bool = False) -> TokenSequence:
    """Left-padded rows (see `layout`) with normally distributed hidden states [B, L, width]."""
    length = max(len(r) for r in rows)
    kind = torch.tensor([[-2] * (length - len(r)) + r for r in rows])
    mask = kind > -2
    return TokenSequence(
        hidden=torch.randn(*kind.shape, width, generator=torch.Generator().manual_seed(seed)),
        mask=mask,
        position=(mask.cumsum(1) - 1).clamp(min=0)[None],
        role=(kind >= 0) * VISUAL,
        origin=torch.arange(length).expand(len(rows), -1),
        block=torch.zeros_like(kind),
        image=kind.clamp(min=-1),
        compact=compact,
    )
