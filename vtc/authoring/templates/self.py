"""MyMethod: the LLM itself summarises the image, in a pass of its own."""

import torch
from torch import Tensor, nn

from vtc.interface import Context, OwnPass, SelfCompressor


class MyMethod(SelfCompressor):
    """M learned tokens run through the LLM behind the image, and its last states there take the image's place."""

    name = "my_method"
    about = "MyMethod: the LLM itself summarises the image, in a pass of its own."
    needs_training = True  # a run without weights is refused; action=train makes them
    fixed_budget = True  # weights hold for one number of tokens
    default_count = 16

    def make_parameters(self) -> None:
        self.summary = nn.Parameter(torch.randn(self.tokens or 0, self.shape.width) * 0.02)

    def summarise(self, embeddings: Tensor, mask: Tensor, context: Context) -> Tensor:
        """Visual tokens [I, N, D], of which `mask` [I, N] are real → [I, M, D]."""
        summary = self.summary.expand(len(embeddings), -1, -1)
        mask = torch.cat([mask, mask.new_ones(summary.shape[:2])], 1)
        return context.run_decoder(torch.cat([embeddings, summary], 1), mask)[:, -summary.shape[1] :]

    def own_passes(self, visual: float, text: int) -> list[OwnPass]:
        """What that pass costs."""
        return [OwnPass(visual + (self.tokens or 0), 0)]
