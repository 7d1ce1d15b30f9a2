"""The ONE attention row that a method may ask for: what the last prompt token pays to every token, in one layer.

Queries and keys are taken as the layer itself projects them (LoRA included), so nothing runs twice, no cache is
touched, and the layer keeps whatever attention implementation it has: none is asked to return its weights.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def projections(attention: Any) -> Iterator[dict[str, Tensor]]:
    """What `q_proj` and `k_proj` of this attention give meanwhile: `{"q": [B, L, H·d], "k": [B, L, Hkv·d]}`."""
    got: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            got[name] = output.detach()

        return hook

    hooks = [attention.q_proj.register_forward_hook(keep("q")), attention.k_proj.register_forward_hook(keep("k"))]
    try:
        yield got
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def attention_row(
    attention: Any,
    got: dict[str, Tensor],
    rope: tuple[Tensor, Tensor],
    query: Tensor,
    valid: Tensor | None,
    cached: Tensor | None,
) -> Tensor:
    """[B, L]: softmax over the whole row of token `query`, mean over heads (FastV), of the L tokens that just ran.

    Args:
        attention: the layer's self-attention.
        got: from `projections`.
        rope: (cos, sin) [B, L, d] of the L tokens.
        query: [B] index of the last prompt token.
        valid: [B, S] bool real tokens among the S = past + L keys; None: all.
        cached: [B, Hkv, S, d] keys after RoPE where there is a cache, else None.
    """
    query = query.to(got["q"].device)  # a model may be spread over devices
    valid = None if valid is None else valid.to(query.device)
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    rows, length, _ = got["q"].shape
    d = attention.head_dim
    cos, sin = (t.expand(rows, -1, -1) for t in rope)
    row = torch.arange(rows, device=query.device)
    q = got["q"][row, query].view(rows, 1, -1, d).transpose(1, 2)  # [B, H, 1, d]
    q = rotate(q, q, cos[row, query][:, None], sin[row, query][:, None])[0]
    if cached is None:
        k = got["k"].view(rows, length, -1, d).transpose(1, 2)
        k = rotate(k, k, cos, sin)[1]
    else:
        k = cached
    total, groups = k.shape[2], k.shape[1]
    scores = (q.view(rows, groups, -1, d) @ k.transpose(2, 3)).float() * attention.scaling  # [B, Hkv, H/Hkv, S]
    seen = torch.arange(total, device=query.device) <= (query + total - length)[:, None]
    if valid is not None:
        seen = seen & valid
    scores = scores.masked_fill(~seen[:, None, None], float("-inf"))
    return scores.softmax(-1).mean((1, 2))[:, total - length :]
