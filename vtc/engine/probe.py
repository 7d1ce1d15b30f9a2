"""Attention that a method may ask for: what some tokens pay to every other in one layer.

Of a layer that runs it is ONE row, that of the last prompt token (`attention_row`). Queries and keys are taken as the
layer itself projects them (LoRA included), so nothing runs twice, and the layer keeps whatever attention implementation
it has: none is asked to return its weights. Packed questions share their images, whose tokens are dropped once for all
of them: their row is the mean over the questions of what the last token of each one's prompt pays.

Of the layer that ran last it can be what any tokens paid (`greatest_attention`), from the same projections, for a
method that asks both what the image and what the question looked at (FitPrune).

Of a layer that is about to run (`next_layer_attention`), for a method that ranks tokens before layer K by layer K
itself (PyramidDrop, VCC), queries and keys are computed from its own norm and projections, of the queries that are
asked about alone; the layer doesn't run. No cache is written to in either case.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vtc.engine.views import View
from vtc.interface import LayerStates, TokenSequence

CHUNK = 128  # queries whose attention is in memory at once


@contextmanager
def projections(attention: Any) -> Iterator[dict[str, Tensor]]:
    """What `q_proj` and `k_proj` of this attention give meanwhile, behind the norm that some models have there (Qwen3):
    `{"q": [B, L, H·d], "k": [B, L, Hkv·d]}`.
    """
    projected: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            given = output.detach()
            projected[name] = (given if output.ndim == 3 else _by_token(attention, name, given, args[0])).flatten(2)

        return hook

    with ExitStack() as stack:
        for name in ("q", "k"):
            last = getattr(attention, f"{name}_norm", None) or getattr(attention, f"{name}_proj")
            stack.callback(last.register_forward_hook(note(name)).remove)
        yield projected


def _by_token(attention: Any, name: str, normed: Tensor, given: Tensor) -> Tensor:
    """[B, L, H, d]: what a norm made of `given` [B, L, H, d], or of that with tokens and heads exchanged (Gemma 3).

    Where there are as many heads as tokens the strides say which of the two it is: both are views of [B, L, H·d].
    """
    inside = attention.k_proj.out_features if name == "k" else attention.o_proj.in_features  # q_proj may make a gate
    heads = inside // attention.head_dim
    exchanged = normed.shape[1] == heads and (normed.shape[2] != heads or given.stride(1) < given.stride(2))
    return normed.transpose(1, 2) if exchanged else normed


@contextmanager
def tower_projections(attention: Any) -> Iterator[dict[str, Tensor]]:
    """What a layer of the vision tower attends with meanwhile.

    Returns:
        q: [T, N, C] as the attention has them; k: [T, N, C] as they are projected (behind their norm). Of a packed
        sequence (T = 1), which is projected by one map, also rotated: [1, N, C] the keys as the attention has them, and
        spans: [S + 1] where the stretches of it begin and end that attend to themselves alone.
    """
    if hasattr(attention, "q_proj"):
        with projections(attention) as projected:
            yield projected
        return
    seen: dict[str, Tensor] = {}

    def note_call(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen["spans"] = kwargs["cu_seqlens"]
        seen["cos"], seen["sin"] = kwargs["position_embeddings"]

    def note_projections(module: nn.Module, args: tuple, output: Tensor) -> None:
        q, k, _ = output.detach().unflatten(-1, (3, attention.num_heads, -1)).unbind(1)  # [N, H, d]
        rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb_vision
        q, rotated = rotate(q, k, seen.pop("cos"), seen.pop("sin"))
        for name, states in (("q", q), ("k", k), ("rotated", rotated)):
            seen[name] = states.flatten(1)[None]

    with ExitStack() as stack:
        stack.callback(attention.register_forward_pre_hook(note_call, with_kwargs=True).remove)
        stack.callback(attention.qkv.register_forward_hook(note_projections).remove)
        yield seen


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
    size: Tensor | None = None,
    view: View | None = None,
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
        size: [B, S] how often attention counts each key; None: once.
        view: which keys are in reach, where it isn't all before a token.
    """
    device = projected["q"].device  # a model may be spread over devices
    query, real, block = query.to(device), real.to(device), block.to(device)
    row = torch.arange(len(query), device=device)[:, None]
    cos, sin = (t.expand(len(query), -1, -1) for t in rope)
    q = rotated(attention, projected["q"][row, query], cos[row, query], sin[row, query])
    k = rotated(attention, projected["k"], cos, sin) if cached is None else cached
    return _paid(attention, q, k, query, real, block, None if mask is None else mask.to(device), size, view)


@torch.no_grad()
def greatest_attention(
    attention: Any,
    projected: dict[str, Tensor],
    rope: tuple[Tensor, Tensor],
    tokens: TokenSequence,
    queries: Sequence[Tensor],
    mask: Tensor | None,
    cached: Tensor | None,
    size: Tensor | None = None,
    view: View | None = None,
) -> tuple[Tensor, ...]:
    """[B, L] for each of `queries`: what these tokens paid to each of the L tokens that just ran, of each of them the
    greatest over the heads, mean over them; zeros in a row without any.

    Args:
        attention, projected, rope, cached, size, view: as of `attention_row`.
        tokens: as the layer saw them.
        queries: [B, L] bool each.
        mask: [B, S] bool, the real tokens among the S = past + L keys; None: all.
    """
    device = projected["q"].device  # a model may be spread over devices
    block, real = tokens.block.to(device), None if mask is None else mask.to(device)
    counts = [(chosen.to(device) & tokens.mask.to(device)).float() for chosen in queries]
    cos, sin = (t.to(device).expand(len(block), -1, -1) for t in rope)
    q = rotated(attention, projected["q"], cos, sin)
    k = rotated(attention, projected["k"], cos, sin) if cached is None else cached
    total, length = k.shape[2], block.shape[1]
    paid = [torch.zeros(block.shape, device=device) for _ in counts]
    for start in range(0, length, CHUNK):
        part = slice(start, min(start + CHUNK, length))
        column = torch.arange(part.start, part.stop, device=device).expand(len(block), -1)
        sees = seen(column, block, total, real, view=view)
        greatest = weights(attention, q[:, :, part], k, sees, size).amax((1, 2))[..., total - length :]
        for sums, count in zip(paid, counts, strict=True):
            sums += (greatest * count[:, part, None]).sum(1)
    return tuple(sums / count.sum(1, keepdim=True).clamp(min=1) for sums, count in zip(paid, counts, strict=True))


@torch.no_grad()
def next_layer_attention(
    layer: Any,
    rope: tuple[Tensor, Tensor],
    tokens: TokenSequence,
    queries: Tensor,
    over: Tensor | None = None,
    past: Tensor | None = None,
    past_mask: Tensor | None = None,
    past_size: Tensor | None = None,
    greatest: bool = False,
    view: View | None = None,
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
        past_size: [B, P] how often attention counts each of them; None: once.
        greatest: the greatest of all heads and queries in place of the mean.
        view: which keys are in reach, where it isn't all before a token.
    """
    attention, device = layer.self_attn, layer.input_layernorm.weight.device  # a model may be spread over devices
    tokens = tokens.to(device)
    cos, sin = (t.to(device).expand(len(queries), -1, -1) for t in rope)
    queries = queries.to(device).long() * tokens.mask

    # The columns of each row's queries, [B, Q]. Shorter rows are filled up with others, of weight 0.
    most = max(1, int((queries > 0).sum(1).max()))
    column = queries.argsort(dim=1, descending=True, stable=True)[:, :most]
    row = torch.arange(len(queries), device=device)[:, None]

    normed = layer.input_layernorm(tokens.hidden.to(device))
    q = rotated(attention, _projected(attention, "q", normed[row, column]), cos[row, column], sin[row, column])
    k = rotated(attention, _projected(attention, "k", normed), cos, sin)
    keys, size = tokens.mask if over is None else tokens.mask & over.to(device), tokens.size
    if past is not None and over is None:
        k = torch.cat([past.to(k), k], 2)
        cached = keys.new_ones(len(keys), past.shape[2]) if past_mask is None else past_mask.to(device)
        keys = torch.cat([cached, keys], 1)
        if size is not None or past_size is not None:
            sizes = [torch.ones_like(cached) if past_size is None else past_size.to(device)]
            size = torch.cat([*sizes, torch.ones_like(tokens.mask) if size is None else size], 1)
    return _paid(attention, q, k, column, queries.gather(1, column), tokens.block, keys, size, view, greatest)


@torch.no_grad()
def next_layer_states(layer: Any, rope: tuple[Tensor, Tensor], tokens: TokenSequence) -> LayerStates:
    """Queries and keys of the tokens in `layer`, which is about to run.

    Args:
        layer: a decoder layer with `input_layernorm` and `self_attn`.
        rope: (cos, sin) [B, L, d] of the tokens.
    """
    attention, device = layer.self_attn, layer.input_layernorm.weight.device  # a model may be spread over devices
    normed = layer.input_layernorm(tokens.hidden.to(device))
    q, k = (_projected(attention, name, normed) for name in ("q", "k"))
    cos, sin = (t.to(device).expand(len(normed), -1, -1) for t in rope)
    heads = attention.head_dim
    turned = rotated(attention, k, cos, sin).transpose(1, 2)
    return LayerStates(q.unflatten(-1, (-1, heads)) * attention.scaling, k.unflatten(-1, (-1, heads)), turned)


def rotated_states(attention: Any, projected: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """[B, L, H·d] of [B, L, H·d] keys or queries, as the layer rotates them by position."""
    cos, sin = (t.to(projected.device).expand(len(projected), -1, -1) for t in rope)
    return rotated(attention, projected, cos, sin).transpose(1, 2).flatten(2)


def _projected(attention: Any, name: str, hidden: Tensor) -> Tensor:
    """[B, L, H·d]: what this attention makes of `hidden` [B, L, D] before it is rotated. name: "q" or "k"."""
    projected = getattr(attention, f"{name}_proj")(hidden)
    if name == "q" and attention.q_proj.out_features == 2 * attention.o_proj.in_features:  # of each head, and a gate
        projected = projected.unflatten(-1, (-1, 2 * attention.head_dim))[..., : attention.head_dim].flatten(2)
    norm = getattr(attention, f"{name}_norm", None)
    return projected if norm is None else norm(projected.unflatten(-1, (-1, attention.head_dim))).flatten(2)


def rotated(attention: Any, projected: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[B, H, L, d] of [B, L, H·d], as the layer rotates them."""
    heads = projected.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    return sys.modules[type(attention).__module__].apply_rotary_pos_emb(heads, heads, cos, sin)[0]


def _paid(
    attention: Any, q: Tensor, k: Tensor, column: Tensor, repeats: Tensor, block: Tensor, real: Tensor | None,
    size: Tensor | None, view: View | None = None, greatest: bool = False,
) -> Tensor:  # fmt: skip
    """[B, L]: what queries pay to the last L of S keys, mean over heads and queries, or the greatest of them.

    Args:
        q, k: [B, H, Q, d] and [B, Hkv, S, d], rotated.
        column: [B, Q] where the queries are among the L tokens.
        repeats: [B, Q] how often each counts in the mean; one that sees no key counts 0.
        block: [B, L], see `TokenSequence`.
        real: [B, S] bool, the keys that the softmax runs over; None: all.
        size: [B, S] how often attention counts each key; None: once.
        view: see `seen`.
    """
    total, length = k.shape[2], block.shape[1]
    sees = seen(column, block, total, real, view=view)
    weight, counts = weights(attention, q, k, sees, size), repeats * sees.any(2)
    if greatest:
        return (weight.amax((1, 2)) * (counts > 0)[..., None]).amax(1)[:, total - length :]
    weight = (weight.mean((1, 2)) * counts[..., None]).sum(1) / counts.sum(1, keepdim=True).clamp(min=1)
    return weight[:, total - length :]


def seen(
    column: Tensor,
    block: Tensor,
    total: int,
    real: Tensor | None,
    bidirectional: bool = False,
    view: View | None = None,
) -> Tensor:
    """[B, Q, S] bool: which of S keys each query sees, the last L of which are the tokens that it is among.

    Args:
        column: [B, Q] where the queries are among the L tokens.
        block: [B, L], see `TokenSequence`.
        total: S.
        real: [B, S] bool, the keys that there are; None: all.
        bidirectional: a query sees what is behind it too.
        view: which of the layer's keys, the last S of them, are in reach, where it isn't all before a query.
    """
    length = block.shape[1]
    if view is not None:
        sees = view.reach(column)[..., -total:]
    else:
        sees = torch.arange(total, device=column.device) <= (column + total - length)[..., None]
        if bidirectional:
            sees = torch.ones_like(sees)
    if real is not None:
        sees = sees & real[:, None]
    sees[..., total - length :] &= (block[:, None] == 0) | (block[:, None] == block.gather(1, column)[..., None])
    return sees


def weights(attention: Any, q: Tensor, k: Tensor, sees: Tensor, size: Tensor | None = None) -> Tensor:
    """[B, Hkv, H/Hkv, Q, S] float32: attention of queries [B, H, Q, d] to the keys [B, Hkv, S, d] that they see, each
    counted `size` [B, S] times (None: once)."""
    groups, most = k.shape[1], q.shape[2]
    scores = q.reshape(len(q), groups, -1, q.shape[-1]) @ k.transpose(2, 3)  # [B, Hkv, H/Hkv·Q, S]
    scores = scores.float().unflatten(2, (-1, most)) * attention.scaling
    if size is not None:
        scores = scores + size.to(scores).log()[:, None, None, None]
    return scores.masked_fill(~sees[:, None, None], torch.finfo(torch.float).min).softmax(-1)
