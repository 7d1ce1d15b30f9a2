"""The Perceiver Resampler (Flamingo, arXiv 2204.14198), a baseline of Victor (arXiv 2410.14072, table 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.allowed import whole
from vtc.interface import Context, Resampler, option


class Perceiver(Resampler):
    """M learned latents attend to the projected image, layer after layer, and take its place (Flamingo, section 3.1).

    Each of `depth` layers, with z the latents and x the projected visual tokens, both of the LLM's width D:
    z = z + Attention(q = LN(z), kv = [LN(x); LN(z)]), then z = z + W₂ GELU(W₁ LN(z)); after the last one a norm
    (appendix A.1.1, figure 5). None of the linear maps has a bias. Attention has 8 heads of 64, an eighth of D at
    LLaVA-1.5 7B. In an LLM narrower than those 512 (pocket: 128) they would be wider than what they read and write, and
    hold most of the method's parameters, so there the default is as many heads as fit D, and at least one.

    Victor counts 252.86 M parameters at the size of LLaVA-1.5 7B: 256 latents, depth 6 and a feed-forward no wider than
    D (Flamingo's own is four times as wide: `mult`) are exactly that. An image has one frame, so there are no time
    embeddings, and as in Flamingo the grid has no other position than what the tower put into its features.

    Args:
        tokens: M; default 64, as Flamingo's, or all visual tokens where there are fewer.
    """

    name = "perceiver"
    about = "The Perceiver Resampler: learned latents attend to the projected image (Flamingo, arXiv 2204.14198)."
    reference = "test_perceiver.py::test_equals_loops_over_latents_and_heads"
    default_count = 64
    needs_training = True
    fixed_budget = True
    trained_options = ("depth", "heads", "head_width", "mult")
    depth: int = option(6, "layers of attention and feed-forward", allowed=whole(1))
    heads: int | None = option(
        None, "of each attention; null: 8, or as many as fit the LLM's width where that is fewer",
        allowed=whole(1).or_null(),
    )  # fmt: skip
    head_width: int = option(64, "of each head", allowed=whole(1))
    mult: int = option(
        1, "width of the feed-forward in units of the LLM's (Flamingo: 4; Victor's count: 1)", allowed=whole(1)
    )

    def make_parameters(self) -> None:
        width, inner = self.shape.width, self.mult * self.shape.width
        heads = max(1, min(8, width // self.head_width)) if self.heads is None else self.heads
        self.latents = nn.Parameter(torch.randn(self.tokens or 0, width))
        self.attentions = nn.ModuleList(LatentAttention(width, heads, self.head_width) for _ in range(self.depth))
        self.forwards = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, inner, bias=False), nn.GELU(), nn.Linear(inner, width, bias=False)
            )
            for _ in range(self.depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor, context: Context) -> Tensor:
        latents = self.latents.expand(len(features), -1, -1)
        for attention, forward in zip(self.attentions, self.forwards, strict=True):
            latents = latents + attention(latents, features)
            latents = latents + forward(latents)
        return self.norm(latents)


class LatentAttention(nn.Module):
    """Latents attend to the media and to themselves."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, inner = heads, heads * head_width
        self.media_norm, self.latent_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, latents: Tensor, media: Tensor) -> Tensor:
        """Latents [I, M, D] and media [I, N, D] → [I, M, D]."""
        z = self.latent_norm(latents)
        both = torch.cat([self.media_norm(media), z], 1)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(z), *self.to_kv(both).chunk(2, dim=-1))
        )
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
