"""The ONE attention row that a method may ask for: what the last prompt token pays to every token, in one layer.

Packed questions share their images, whose tokens are dropped once for all of them: their row is the mean over the
questions of what the last token of each one's prompt pays, under the mask of blocks.

Queries and keys are taken as the layer itself projects them (LoRA included), so nothing runs twice, no cache is
touched, and the layer keeps whatever attention implementation it has: none is asked to return its weights.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def projections(attention: Any) -> Iterator[dict[str, Tensor]]:
    """What `q_proj` and `k_proj` of this attention give meanwhile, behind the norm that some models have there (Qwen3):
    `{"q": [B, L, H·d], "k": [B, L, Hkv·d]}`.
    """
    projected: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            projected[name] = output.detach().flatten(2)

        return hook

    with ExitStack() as stack:
        for name in ("q", "k"):
            last = getattr(attention, f"{name}_norm", None) or getattr(attention, f"{name}_proj")
            stack.callback(last.register_forward_hook(note(name)).remove)
        yield projected


def heads(attention: Any, name: str, hidden: Tensor) -> Tensor:
    """[B, H, L, d]: what this attention makes of `hidden` [B, L, D] before it is rotated.

    Args:
        name: "q" or "k".
    """
    projected = getattr(attention, f"{name}_proj")(hidden).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{name}_norm", None)
    return (projected if norm is None else norm(projected)).transpose(1, 2)


@torch.no_grad()
def attention_row(
    attention: Any,
    projected: dict[str, Tensor],
    rope: tuple[Tensor, Tensor],
    query: Tensor,
    real: Tensor,
    block: Tensor,
    mask: Tensor | None,
    cached: Tensor | None,
) -> Tensor:
    """[B, L]: softmax over the whole row of a `query`, mean over heads (FastV) and over the queries of the row, of the
    L tokens that just ran.

    Args:
        attention: the layer's self-attention.
        projected: from `projections`.
        rope: (cos, sin) [B, L, d] of the L tokens.
        query: [B, Q] index of the last token of each prompt.
        real: [B, Q] bool, which of these there are.
        block: [B, L] of the L tokens, see `TokenSequence`.
        mask: [B, S] bool, the real tokens among the S = past + L keys; None: all.
        cached: [B, Hkv, S, d] keys after RoPE where there is a cache, else None.
    """
    device = projected["q"].device  # a model may be spread over devices
    query, real, block = query.to(device), real.to(device), block.to(device)
    mask = None if mask is None else mask.to(device)
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    rows, length, _ = projected["q"].shape
    d = attention.head_dim
    cos, sin = (t.expand(rows, -1, -1) for t in rope)
    row, most = torch.arange(rows, device=device)[:, None], query.shape[1]
    q = projected["q"][row, query].view(rows, most, -1, d).transpose(1, 2)  # [B, H, Q, d]
    q = rotate(q, q, cos[row, query], sin[row, query])[0]
    if cached is None:
        k = projected["k"].view(rows, length, -1, d).transpose(1, 2)
        k = rotate(k, k, cos, sin)[1]
    else:
        k = cached
    total, groups = k.shape[2], k.shape[1]
    scores = q.reshape(rows, groups, -1, d) @ k.transpose(2, 3)  # [B, Hkv, H/Hkv·Q, S]
    scores = scores.float().unflatten(2, (-1, most)) * attention.scaling
    seen = torch.arange(total, device=device) <= (query + total - length)[..., None]  # [B, Q, S]
    if mask is not None:
        seen = seen & mask[:, None]
    other = (block[:, None] != 0) & (block[:, None] != block.gather(1, query)[..., None])
    seen[..., total - length :] &= ~other
    weight = scores.masked_fill(~seen[:, None, None], float("-inf")).softmax(-1).mean((1, 2))  # [B, Q, S]
    weight = (weight * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    return weight[:, total - length :]
