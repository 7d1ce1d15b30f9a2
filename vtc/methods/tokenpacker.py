"""TokenPacker (arXiv 2407.02392): an efficient visual projector for multimodal LLMs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vtc.interface import Context
from vtc.methods.windows import WindowAttention, WindowResampler, mlp, side_by_side


class TokenPacker(WindowResampler):
    """Coarse queries, each of which takes in the fine features of its own window, in the projector's place (section 3).

    Point queries: the projected layer's patches [I, N, C], interpolated bilinearly from the h×w grid to h/s × w/s, are
    the M = N/s² queries. Region-to-point injection: each attends to the s×s patches under it, whose keys and values are
    made of several layers of the tower side by side. A two-layer MLP maps what it finds to the LLM's width:
    T = MLP(Attention(LN(Q W), LN(MLP_k(X_fine)), LN(MLP_v(X_fine)))).

    As in the authors' code: the interpolation doesn't smooth (for an even s it is the mean of a window's four innermost
    patches, for an odd one its central patch), no residual leads past the attention, which has projections of its own,
    and the tower stays out of training. On a tower of another depth the four layers keep their relative depth (they are
    three in pocket's, where two coincide). Weights begin as torch draws them.

    One stride for both sides: budgets are those whose s divides height and width; a backbone without a grid is refused.

    Args:
        tokens: M; default: a quarter of the visual tokens (s = 2), the paper's first budget.
    """

    name = "tokenpacker"
    about = "TokenPacker: coarse queries take in the fine features of their windows (arXiv 2407.02392)."
    reference = "test_tokenpacker.py::test_equals_loops_over_windows"

    def make_parameters(self) -> None:
        width = self.shape.vision.width
        self.query = nn.Sequential(nn.Linear(width, width, bias=False), nn.LayerNorm(width, eps=1e-6))
        self.injection = WindowAttention(len(self.fine) * width, width, self.heads)
        self.mlp = mlp(width, self.shape.width)

    def forward(self, features: Tensor, context: Context) -> Tensor:
        size = [side // self.stride for side in self.grid]
        coarse = F.interpolate(features.transpose(1, 2).unflatten(2, self.grid), size, mode="bilinear")
        query = self.query(coarse.flatten(2).transpose(1, 2))
        return self.mlp(self.injection(query, side_by_side(context.seen(), self.fine), self.grid, self.stride))
