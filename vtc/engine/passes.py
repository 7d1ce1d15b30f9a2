"""Passes of the decoder outside the runner: a method's own, uncompressed and without a cache."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from vtc.backbones import adapters
from vtc.backbones.base import Backbone
from vtc.engine import recurrent, views
from vtc.engine.attention import AttentionWatch
from vtc.engine.limits import check_context
from vtc.interface import Compressor


def attach(backbone: Backbone, method: Compressor) -> None:
    """`method.attach(backbone)`, also inside `torch.inference_mode`, whose parameters could never be trained."""
    with torch.inference_mode(False):
        method.attach(backbone)


def run_decoder(
    backbone: Backbone,
    embeddings: Tensor,
    mask: Tensor | None = None,
    adapter: str | None = None,
    bidirectional: bool = False,
    watch: AttentionWatch | None = None,
) -> Tensor:
    """Last hidden states [B, L, D] (after the final norm) of the language model on `embeddings` [B, L, D].

    Args:
        mask: [B, L] bool, padding anywhere; positions count the real tokens. None: all real.
        adapter: the LoRA adapter it runs under; None: the plain weights.
        bidirectional: every token sees every other.
        watch: what looks at the layers while they run.
    """
    decoder, rows, given = backbone.decoder, None, embeddings
    if backbone.recurrent and mask is not None and not bool(mask.all()):  # no state may go through padding
        rows = recurrent.Rows.of(mask.bool()[:, None])
        embeddings, mask = rows.there(embeddings), rows.mask
    check_context(backbone, embeddings.shape[1], None if mask is None else mask.sum(1) - 1)
    forward = getattr(decoder.forward, "vtc_original", decoder.forward)
    extra: dict = {"is_causal": False} if bidirectional else {}
    if mask is not None and not bool(mask.all()):
        extra |= {"attention_mask": mask.long(), "position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}
    own: dict[str | None, views.View] = {}
    if backbone.windows:
        real = torch.ones_like(embeddings[..., 0], dtype=torch.bool) if mask is None else mask.bool()
        place = (real.long().cumsum(1) - 1).clamp(min=0)
        own = views.of_own_pass(decoder, place, bidirectional)
        masks = {kind: views.additive(view.every() & real[:, None], embeddings.dtype) for kind, view in own.items()}
        extra = {"attention_mask": masks, "position_ids": place}
    watched = watch.own_pass(decoder, embeddings, mask, bidirectional, own) if watch is not None else nullcontext()
    with adapters.using(decoder.layers, adapter), watched:
        hidden = forward(inputs_embeds=embeddings, use_cache=False, **extra).last_hidden_state
    return hidden if rows is None else rows.again(hidden, torch.zeros_like(given, dtype=hidden.dtype))
