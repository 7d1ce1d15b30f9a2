"""Attention that a layer about to run would pay: computed from its own norm, projections and rotary embedding.

A method that ranks tokens before layer K by layer K itself (PyramidDrop, VCC) asks for it; the probe
(`vtc.engine.probe`) gives the attention of a layer that has run. Only the queries that are asked about are projected,
the layer itself doesn't run, and no cache is written to.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from vtc.engine.probe import heads
from vtc.interface import TokenSequence


@torch.no_grad()
def next_layer_attention(
    layer: Any,
    rope: tuple[Tensor, Tensor],
    tokens: TokenSequence,
    queries: Tensor,
    over: Tensor | None = None,
    past: Tensor | None = None,
    past_mask: Tensor | None = None,
) -> Tensor:
    """[B, L]: what `queries` would pay to each of the L tokens in `layer`, mean over heads and over the queries.

    Args:
        layer: a decoder layer with `input_layernorm` and `self_attn`.
        rope: (cos, sin) [B, L, d] of the tokens.
        queries: [B, L] bool, or how often each counts in the mean; a row without one gets zeros.
        over: [B, L] bool, the tokens that the softmax runs over; None: all that a query sees, cached ones too. A query
            that sees none of them doesn't count.
        past: [B, Hkv, P, d] cached keys of this layer; None: none.
        past_mask: [B, P] bool, the real ones of the cached keys; None: all.
    """
    attention = layer.self_attn
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    rows, length = queries.shape
    device = layer.input_layernorm.weight.device  # a model may be spread over devices
    tokens = tokens.to(device)
    cos, sin = (t.to(device).expand(rows, -1, -1) for t in rope)
    queries = queries.to(device).long() * tokens.mask

    # The columns of each row's queries, [B, Q]. Shorter rows are filled up with others, of weight 0.
    most = max(1, int((queries > 0).sum(1).max()))
    column = queries.argsort(dim=1, descending=True, stable=True)[:, :most]
    row = torch.arange(rows, device=device)[:, None]
    repeats = queries.gather(1, column)

    normed = layer.input_layernorm(tokens.hidden.to(device))
    q = heads(attention, "q", normed[row, column])  # [B, H, Q, d]
    q = rotate(q, q, cos[row, column], sin[row, column])[0]
    k = heads(attention, "k", normed)  # [B, Hkv, L, d]
    k = rotate(k, k, cos, sin)[1]

    keys = tokens.mask if over is None else tokens.mask & over.to(device)
    block, own = tokens.block[:, None], tokens.block.gather(1, column)[..., None]
    seen = keys[:, None] & (torch.arange(length, device=device) <= column[..., None]) & ((block == 0) | (block == own))
    if past is not None and over is None:
        k = torch.cat([past.to(k), k], 2)
        if past_mask is None:
            past_mask = torch.ones(rows, past.shape[2], dtype=torch.bool, device=device)
        seen = torch.cat([past_mask.to(device)[:, None].expand(-1, most, -1), seen], 2)
    groups = k.shape[1]
    scores = q.reshape(rows, groups, -1, q.shape[-1]) @ k.transpose(2, 3)  # [B, Hkv, H/Hkv·Q, S]
    scores = scores.float().unflatten(2, (-1, most)) * attention.scaling
    counts = repeats * seen.any(2)
    weight = (
        scores.masked_fill(~seen[:, None, None], torch.finfo(torch.float).min).softmax(-1).mean((1, 2))
    )  # [B, Q, S]
    weight = (weight * (seen * counts[..., None])).sum(1) / counts.sum(1, keepdim=True).clamp(min=1)
    return weight[:, weight.shape[1] - length :]
