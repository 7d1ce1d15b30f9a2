"""The base of methods that run the LLM itself, and what training tells them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from vtc.interface.compressor import Embedded
from vtc.interface.context import Context
from vtc.interface.resampler import Resampler
from vtc.interface.tokens import TokenSequence


@dataclass(frozen=True)
class Captions:
    """A caption of each image of a training pass.

    Attributes:
        ids, mask: its tokens, [I, L].
        gather: rows [I, D] → those of every process, with their gradient: a contrastive loss is over all of them.
    """

    ids: Tensor
    mask: Tensor
    gather: Callable[[Tensor], Tensor] = lambda rows: rows


class SelfCompressor(Resampler):
    """A resampler that runs the LLM itself (`context.run_decoder`). Override `summarise`.

    The context of a pass keeps the summaries of its images, [I, M, D], in `memo["summary"]`.
    """

    learns_from_captions = True

    def summarise(self, embeddings: Tensor, mask: Tensor, context: Context) -> Tensor:
        """Embeddings [I, N, D] with mask [I, N] (visual tokens of an image, or a text) → summary [I, M, D]."""
        raise NotImplementedError

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        return tokens.replace(self._summary(tokens.visual_hidden(), tokens.images[1], context))

    def own_flops(self, text: int) -> float:
        return 0.0  # Its network is the LLM, see `own_passes`.

    def embed(self, source: Embedded) -> Tensor:
        """[I, D] float32: the mean of the summary tokens."""
        summary = source.summary
        if summary is None:
            summary = self._summary(*source.embeddings(), source.context)
        return summary.float().mean(1)

    def _summary(self, embeddings: Tensor, mask: Tensor, context: Context) -> Tensor:
        summary = self.summarise(embeddings, mask, context)
        context.memo["summary"] = summary
        return summary
