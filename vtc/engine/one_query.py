"""Attention of one query a row, for a compiled step of decoding on a CPU.

The kernel that `sdpa` calls there works on blocks of queries: a single one takes it twice as long as these products and
sums, of which the compiler makes loops that read keys and values once. Heads that share keys need no copies of them,
which `sdpa` makes: with them it takes 3 to 15 times as long.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "vtc_one_query"  # in transformers' registry
REPLACED = "sdpa"


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers' `sdpa_attention_forward` gives for one query.

    Args:
        query: [B, H, 1, d]; key, value: [B, Hkv, T, d], H a multiple of Hkv.
        attention_mask: [B, 1, 1, T], added to the scores.
        scaling: of the scores; None: 1 / √d.

    Returns:
        [B, 1, H, d], computed in float32 at least.
    """
    rows, heads, width = len(query), query.shape[1], query.shape[3]
    shared = key.shape[1]
    dtype = torch.promote_types(query.dtype, torch.float32)
    scaled = query.to(dtype).view(rows, 1, shared, heads // shared, width) * (scaling or 1 / math.sqrt(width))
    # The compiler would rotate a query anew for each key. What is written to a place that is chosen by an index it
    # can't compute again.
    first = torch.zeros(1, dtype=torch.long, device=query.device)
    fixed = torch.empty_like(scaled).index_copy_(1, first, scaled)[:, 0]
    scores = (fixed[:, :, :, None] * key.to(dtype)[:, :, None]).sum(-1)
    if attention_mask is not None:
        scores = scores + attention_mask[:, :, 0, None]
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    out = (weights[..., None] * value.to(dtype)[:, :, None]).sum(3) / weights.sum(-1, keepdim=True)
    return out.to(query.dtype).reshape(rows, 1, heads, -1), None


AttentionInterface.register(NAME, attention)


@contextmanager
def replacing(decoder: Any) -> Iterator[None]:
    """Layers whose attention is `sdpa` take this one, on a CPU: everywhere else the kernels know single queries."""
    configs = {id(a.config): a.config for layer in decoder.layers if (a := getattr(layer, "self_attn", None))}
    here = next(decoder.parameters()).device.type == "cpu"
    replaced = [c for c in configs.values() if here and c._attn_implementation == REPLACED]
    try:
        for config in replaced:
            config._attn_implementation = NAME
        yield
    finally:
        for config in replaced:
            config._attn_implementation = REPLACED
