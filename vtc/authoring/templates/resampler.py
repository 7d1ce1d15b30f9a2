"""MyMethod: learned queries read the image, a token each."""

import torch
from torch import Tensor, nn

from vtc.interface import Context, Resampler


class MyMethod(Resampler):
    """Before the LLM, M learned queries attend to the visual tokens, and what each reads takes the image's place."""

    name = "my_method"
    about = "MyMethod: learned queries read the image, a token each."
    needs_training = True  # a run without weights is refused; action=train makes them
    fixed_budget = True  # weights hold for one number of tokens
    default_count = 16

    def make_parameters(self) -> None:
        self.queries = nn.Parameter(torch.randn(self.tokens or 0, self.shape.width) * 0.02)

    def forward(self, features: Tensor, context: Context) -> Tensor:
        """Visual tokens [I, N, D] → [I, M, D]."""
        attention = self.queries @ features.transpose(1, 2) / features.shape[-1] ** 0.5
        return attention.softmax(-1) @ features
