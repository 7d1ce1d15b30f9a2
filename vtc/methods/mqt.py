"""MQT (arXiv 2405.19315): matryoshka query transformer for large vision-language models."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.allowed import one_of
from vtc.errors import UserError
from vtc.interface import GRID, Context, Resampler, option
from vtc.interface.options import SOME


def sincos(place: Tensor, width: int) -> Tensor:
    """2-D sine and cosine embeddings [..., width] of places [..., 2] (column, row): half of the width for each."""
    frequency = 10000.0 ** -(torch.arange(width // 4, device=place.device, dtype=torch.float) / (width // 4))
    angle = place.float()[..., None] * frequency  # [..., 2, width / 4]
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)


def van_der_corput(count: int, base: int) -> Tensor:
    """[count] in (0, 1): the digits of 1, 2, 3, … in `base`, mirrored at the point; all beginnings are spread."""
    number, value, digit = torch.arange(1, count + 1), torch.zeros(count), 1.0
    while bool(number.any()):
        digit /= base
        value, number = value + digit * (number % base), number // base
    return value


class MQT(Resampler):
    """Of up to M latent queries the FIRST m read the image: m tokens take its place (section 3).

    z_1 … z_M attend to the image's features v in one cross-attention layer without a residual,

        H_i = W_o · softmax_j(W_q LN(z_i + p_i) · W_k LN(k_j) / √d) W_v LN(v_j),   i = 1 … m

    and training draws m uniformly from the even numbers 2 … M at each step, so that what matters most moves into the
    first queries and one checkpoint serves every m. Nothing but next-token prediction trains it.

    Done here on purpose: the paper says that the queries attend to the features; in the authors' code, from which its
    numbers are, k_j is the position embedding of patch j alone: the image enters through the values only, and a query
    has the same weights over the patches of every image. That is the default; `keys=image` is what the text says,
    k_j = v_j + the position embedding. v are the projected features, where the authors' layer stands in the projector's
    place: it is as wide as the LLM, and needs no matrix from the tower's width to that. Their p_i is the i-th cell of a
    16×16 raster, so that the first 16 queries share the top row; here the p_i are a Halton sequence, whose first m
    points are spread over the image for every m. Their keys are that raster's table, rounded to half precision and
    resized to the patches by bicubic interpolation: at 24×24 up to 0.106 beside the sines and cosines of the patches'
    own places, which stand here. `positions=raster` is both as theirs, for weights that were trained so. W_q and W_k
    begin as one matrix, W_v and W_o as the identity: each token begins as the mean of the features around its point,
    which the LLM can read already. M is at most a backbone's visual tokens; their layer would make 256 of fewer.

    Args:
        tokens: m; None: all queries.
    """

    name = "mqt"
    about = "MQT: the first m of many latent queries read the image, one checkpoint for every m (arXiv 2405.19315)."
    reference = "test_mqt.py::test_the_cross_attention_written_out"
    needs = (GRID,)
    needs_training = True
    elastic = True
    trained_options = ("max_tokens", "keys", "positions")
    max_tokens: int = option(256, "queries there are; at most the backbone's visual tokens", allowed=SOME)
    keys: str = option(
        "position",
        "of the patches' positions alone (the authors' code); image: of their features too (the text)",
        allowed=one_of("position", "image"),
    )
    positions: str = option(
        "spread",
        "of queries, in a Halton sequence; raster: row by row, and keys of a resized table (the authors' code)",
        allowed=one_of("spread", "raster"),
    )

    def prepare(self) -> None:
        shape = self.shape
        if shape.width % 4:
            raise UserError(f"method=mqt: width {shape.width} of {shape.name} is no multiple of 4")
        if shape.visual_tokens is None and (self.tokens or 0) > self.most:
            raise UserError(f"tokens={self.tokens}: mqt has method.max_tokens={self.most} queries")
        self.side = math.sqrt(self.max_tokens)
        if self.positions == "raster" and not self.side.is_integer():
            raise UserError(f"method.positions=raster: method.max_tokens={self.max_tokens} is no square")

    @property
    def most(self) -> int:
        """M: `max_tokens`, or as many as the backbone has visual tokens, where those are fewer."""
        return min(self.max_tokens, self.shape.visual_tokens or self.max_tokens)

    def make_parameters(self) -> None:
        width = self.shape.width
        self.queries = nn.Parameter(torch.randn(self.most, width) * 0.02)
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        with torch.no_grad():
            self.q.weight.normal_(std=width**-0.5)
            self.k.weight.copy_(self.q.weight)
            for layer in (self.v, self.out):
                layer.weight.copy_(torch.eye(width))
            for layer in (self.q, self.k, self.v, self.out):
                layer.bias.zero_()

    def forward(self, features: Tensor, context: Context) -> Tensor:
        m, images, dtype = self.tokens or self.most, len(features), features.dtype
        of_queries, of_keys = self.encodings(m, context.grids, features.device)
        z, place = self.queries[:m] + of_queries.to(self.queries.dtype), of_keys.to(dtype)
        q, k = self.q(self.norm_q(z)), self.k(self.norm_k(place + features if self.keys == "image" else place))
        v = self.v(self.norm_v(features))
        q, k, v = (self.per_head(x) for x in (q.expand(images, -1, -1), k, v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def encodings(self, m: int, grids: Sequence[tuple[int, int] | None], device: torch.device) -> tuple[Tensor, Tensor]:
        """Position encodings of the queries [m, D], and of the patches [I, N, D] of images on these grids."""
        known = [grid for grid in grids if grid is not None]
        if len(known) < len(grids):
            raise UserError("method=mqt: an image whose visual tokens are no grid has no places for its keys")
        width = self.shape.width
        if self.positions == "raster":
            number, side = torch.arange(self.max_tokens, device=device), int(self.side)
            table = sincos(torch.stack([number % side, number // side], -1), width).half().float()
            image = table.view(1, side, side, width).movedim(3, 1)
            keys = [F.interpolate(image, grid, mode="bicubic")[0].flatten(1).T for grid in known]
            return table[:m], torch.stack(keys)
        points = torch.stack([van_der_corput(m, 2), van_der_corput(m, 3)], -1) * self.side - 0.5
        return sincos(points.to(device), width), torch.stack([sincos(self.cells(g, device), width) for g in known])

    def cells(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """Places [N, 2] (column, row) of an image's patches, on the queries' scale."""
        height, width = grid
        raster = torch.arange(height * width, device=device)
        cell = torch.stack([(raster % width + 0.5) / width, (raster // width + 0.5) / height], -1)
        return cell * self.side - 0.5

    def per_head(self, x: Tensor) -> Tensor:
        """[I, L, D] → [I, H, L, D / H], of as many heads as the LLM has, or the most of which both are multiples."""
        return x.unflatten(-1, (math.gcd(self.shape.width, self.shape.heads), -1)).transpose(1, 2)

    def training_budgets(self, generator: random.Random) -> Sequence[int]:
        return [generator.choice(range(2, self.most + 1, 2) or [1])]

    def default_tokens(self) -> int | None:
        return self.most

    def offers(self) -> Sequence[int]:
        return range(1, self.most + 1)
