"""The base of methods that make new tokens of the projected image."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vtc.interface.compressor import Compressor
from vtc.interface.context import Context
from vtc.interface.tokens import TokenSequence


class Resampler(Compressor):
    """Makes M new tokens of each image before the LLM. Override `forward`."""

    def layers(self) -> set[int]:
        return {0}

    def forward(self, features: Tensor, context: Context) -> Tensor:
        """Projected visual tokens [I, N, D] → [I, M, D]."""
        raise NotImplementedError

    def example(self) -> tuple[Tensor, Context]:
        """What `forward` is given for one image, of zeros."""
        shape = self.shape
        return torch.zeros(1, shape.visual_tokens or 0, shape.width), Context(shape, grids=[shape.grid])

    def own_flops(self, text: int) -> float:
        try:
            return self._counted("meta")  # Nothing is stored or computed there; shapes are all that counts.
        except (NotImplementedError, RuntimeError):  # `forward` looks at values.
            return self._counted("cpu")

    def _counted(self, device: str) -> float:
        with torch.device(device):
            twin, example = self.with_tokens(self.tokens).build(), self.example()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            twin.eval().requires_grad_(False)(*example)  # The counter trips over gradients of views.
        return int(counter.get_total_flops())

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        _, real = tokens.images
        features, sizes = tokens.visual_hidden(), real.sum(1)
        resampled: dict[int, Tensor] = {}
        for size in sizes.unique().tolist():  # Images of one size are resampled together.
            same = (sizes == size).nonzero()[:, 0].tolist()
            alike = dataclasses.replace(context, grids=[g for i, g in enumerate(context.grids) if i in same])
            resampled |= zip(same, self(features[same, :size], alike), strict=True)
        return tokens.replace(torch.stack([resampled[i] for i in range(len(features))]))
