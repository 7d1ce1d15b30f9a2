"""Where the questions of a call are, and where the prompt of each ends."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vtc.engine.layout import between_tiles, last_column
from vtc.interface import TEXT, TokenSequence


@dataclass(frozen=True)
class Questions:
    """What the caller says of the questions in a call, in the user's layout [B, T].

    Its methods speak of the tokens as they are between two layers, L in a row. Q is the largest number of packed
    questions in a row, and 1 where none are packed.

    Attributes:
        block: [B, T] packed questions, see `TokenSequence`; None: each row is one question.
        labels: [B, T], -100 outside the answers; None: no token is part of an answer.
        prompt_end: [B] index of each row's last prompt token, where questions aren't packed; None: by the `labels`.
    """

    block: Tensor | None = None
    labels: Tensor | None = None
    prompt_end: Tensor | None = None

    @cached_property
    def _count(self) -> int:
        """Q; reading it waits for the device."""
        return 1 if self.block is None else max(1, int(self.block.max()))

    def members(self, block: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, Q, L] bool: which tokens each question consists of, the shared prefix among them.

        Args:
            block: [B, L] of the tokens.
            mask: [B, L] bool, the real ones; None: all.
        """
        if self.block is None:
            member = torch.ones_like(block, dtype=torch.bool)[:, None]
        else:
            number = torch.arange(1, self._count + 1, device=block.device)[:, None]
            member = (block[:, None] == 0) | (block[:, None] == number)
        return member if mask is None else member & mask[:, None]

    def prompt_ends(self, tokens: TokenSequence) -> tuple[Tensor, Tensor]:
        """The last token of each question's prompt, [B, Q] index, and which of these questions there are, [B, Q] bool.

        A question whose first token is an answer already is asked by the end of the prefix.
        """
        member = self.members(tokens.block, tokens.mask)
        end = self._external_ends(member.device)
        real = torch.ones_like(member[..., 0])
        if self.block is not None:
            number = torch.arange(1, member.shape[1] + 1, device=member.device)[:, None]
            real = ((tokens.block[:, None] == number) & tokens.mask[:, None]).any(2)
            real[:, 0] |= ~real.any(1)  # A row without a question behind its prefix is asked by the prefix.
        if end is None:
            return last_column(member), real
        beams = len(member) // len(end)  # `generate` repeats rows that the caller gave once
        end = end.to(member.device).view(len(end), -1).repeat_interleave(beams, 0)
        # What a method made has no origin, but it has a place: it is behind the end where a token before it is.
        behind = member & (tokens.origin[:, None] > end[..., None])
        return last_column(member & (behind.cumsum(2) == 0)), real

    def _external_ends(self, device: torch.device) -> Tensor | None:
        """[B] or [B, Q], in the user's layout: the last prompt token; None: a question has no answer behind it."""
        if self.prompt_end is not None and self.block is None:
            return self.prompt_end
        if self.labels is None:
            return None
        answer = (self.labels != -100).to(device)[:, None]
        if self.block is not None:
            answer = answer & self.members(self.block.to(device))
        return torch.where(answer.any(2), answer.long().argmax(2) - 1, answer.shape[2])

    def end_counts(self, tokens: TokenSequence) -> Tensor:
        """[B, L]: how many of the row's prompts end with each token."""
        end, real = self.prompt_ends(tokens)
        return torch.zeros_like(tokens.block).scatter_add(1, end, real.long())

    def prompt_text(self, tokens: TokenSequence) -> Tensor:
        """[B, L] bool, see `Context.prompt`: the prompts' text behind the first image of the row, without answers;
        where there is none, the last prompt token.
        """
        end, real = self.prompt_ends(tokens)
        behind = ((tokens.role != TEXT) & tokens.mask).cumsum(1) > 0
        column = torch.arange(tokens.mask.shape[1], device=end.device)
        prompt = (column <= end[..., None]) & self.members(tokens.block, tokens.mask) & real[..., None]  # [B, Q, L]
        text = (tokens.role == TEXT) & behind & ~between_tiles(tokens) & prompt.any(1)
        return torch.where(text.any(1, keepdim=True), text, self.end_counts(tokens) > 0)
