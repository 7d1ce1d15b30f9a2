"""A video cut into scenes, in which what stands still is merged over time: what HoliTom and PruneVid share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from vtc.interface import Compressor, Context, TokenSequence, rank


@dataclass(frozen=True)
class Part:
    """Tokens of a video that are reduced together.

    Attributes:
        frame: the one in which they stand.
        place: [n] which of its tokens they are.
        values: [n, D].
        still: whether others of the scene have merged into them; the frame is its first then.
        count: how many of them are left.
    """

    frame: int
    place: Tensor
    values: Tensor
    still: bool
    count: int


class SceneMerger(Compressor):
    """A row's images are the frames of a video, in order. Before the LLM, tokens that stand still in a scene become
    one, their mean, in its first frame; they, and what moves in each frame, are then reduced to `retained` · `tokens` a
    frame, a mean over the video. Before `layer` the LLM itself leaves `tokens`. Override `scenes`, `left` and `prune`.

    Attributes:
        first: tokens a frame that are left before the LLM.
    """

    across_images = True
    layer: int
    retained: float

    def prepare(self) -> None:
        full = self.shape.visual_tokens
        wanted = None if self.tokens is None else max(self.tokens, round(self.tokens * self.retained))
        self.first = wanted if wanted is None or full is None else min(wanted, full)

    def layers(self) -> set[int]:
        return {0, self.layer}

    def scenes(self, frames: Tensor, real: Tensor) -> tuple[list[range], Tensor, Tensor]:
        """Of frames [F, N, D]: the scenes, which tokens stand still [F, N], and how alike each is to what it would
        merge with [F, N]."""
        raise NotImplementedError

    def left(self, part: Part, score: Tensor) -> tuple[Tensor, Tensor]:
        """Which `part.count` of a part's tokens are left, [count], and what they become, [count, D]. score: [n], by
        `rate`."""
        raise NotImplementedError

    def prune(self, tokens: TokenSequence, context: Context, count: Tensor) -> TokenSequence:
        """Leaves `count` [B] visual tokens of each row, within the LLM. `context.memo["parts"]` has the number of each
        token's part in its video, in the order of the tokens."""
        raise NotImplementedError

    def rate(self, tokens: TokenSequence, context: Context) -> Tensor:
        """[I, N], which tokens of a frame stay before others."""
        return torch.zeros(tokens.images[1].shape, device=tokens.mask.device)

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        if self.tokens is None or tokens.fits(self.tokens):
            return tokens
        if layer:  # where a frame may have nothing left, the frames aren't counted any more
            return self.prune(tokens, context, context.memo["count"].to(tokens.mask.device))
        (_, real), (row, _) = tokens.images, tokens.frames
        context.memo["count"] = self.tokens * torch.bincount(row, minlength=len(tokens.mask))
        score, hidden = self.rate(tokens, context), tokens.visual_hidden().float()
        values, kept, number = hidden.clone(), torch.zeros_like(real), torch.zeros_like(real, dtype=torch.long)
        for video in row.unique().tolist():
            own = (row == video).nonzero()[:, 0]
            for i, part in enumerate(self.parts(hidden[own], real[own])):
                if not part.count:
                    continue
                frame = own[part.frame]
                chosen, made = self.left(part, score[frame, part.place])
                place = part.place[chosen]
                values[frame, place], kept[frame, place], number[frame, place] = made, True, i
        context.memo["parts"] = number[kept]
        return tokens.rewrite(values, kept & (values != hidden).any(-1)).keep_visual(kept)

    def parts(self, x: Tensor, real: Tensor) -> list[Part]:
        """The parts of a video x [F, N, D], which all lose the same share of their tokens. Where more are to be left
        than merging leaves, those that are the least alike stay themselves."""
        with torch.no_grad():
            scenes, still, like = self.scenes(x, real)
            opens = torch.zeros(len(x), 1, dtype=torch.bool, device=x.device)
            opens[[scene.start for scene in scenes]] = True
            repeats = still & ~opens
            over = (self.first or 0) * len(x) - (real & ~repeats).sum()
            repeats &= rank(-like.masked_fill(~repeats, float("inf")).flatten()[None]).view_as(real) >= over
            merges = still & (opens | repeats)
        parts: list[tuple[int, Tensor, Tensor, bool]] = []
        for scene in scenes:
            span, place = slice(scene.start, scene.stop), still[scene.start].nonzero()[:, 0]
            if len(place):
                member = merges[span, place][..., None]
                mean = (x[span, place] * member).sum(0) / member.sum(0)
                parts.append((scene.start, place, mean, True))
            for t in scene:
                moves = (real[t] & ~merges[t]).nonzero()[:, 0]
                parts.append((t, moves, x[t, moves], False))
        counts = shares([len(place) for _, place, _, _ in parts], (self.first or 0) * len(x))
        return [Part(*part, count) for part, count in zip(parts, counts, strict=True)]

    def layer_tokens(self) -> list[int]:
        full = self.shape.visual_tokens or 0
        left = [full if self.first is None else self.first] * self.layer
        return left + [full if self.tokens is None else min(self.tokens, full)] * (self.shape.depth - self.layer)


def shares(sizes: Sequence[int], count: int) -> list[int]:
    """`count` things dealt to places that hold `sizes` of them, in proportion, rounded so that they add up."""
    total = sum(sizes)
    ends = [end * min(count, total) // max(1, total) for end in accumulate(sizes, initial=0)]
    return [b - a for a, b in pairwise(ends)]
