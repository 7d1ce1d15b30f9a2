"""An independent reference of a decoder pass: full 4-D masks, no cache, no engine, one row at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vtc.backbones.base import Backbone


def embedded(backbone: Backbone, ids: Tensor, pixels: Tensor | None) -> Tensor:
    """[L, D] embeddings of one row [L], its images in place."""
    x = backbone.decoder.embed_tokens(ids)
    if pixels is not None:
        x = x.clone()
        x[ids == backbone.image_token_id] = torch.cat(list(backbone.core.get_image_features(pixels).pooler_output))
    return x


def decoder(
    backbone: Backbone,
    x: Tensor,
    position: Tensor,
    changes: dict[int, Callable[[Tensor, Tensor], tuple[Tensor, ...]]] | None = None,
    hidden_from: dict[int, Tensor] | None = None,
    causal: bool = True,
    deep: Sequence[Tensor] = (),
) -> Tensor:
    """Last hidden states of one row.

    Args:
        x: [L, D]; position: [L], or [3, L] of M-RoPE.
        changes: layer → (x, position) → (x, position), before that layer; or (x, position, size), where attention
            counts each token as often as its size [L] says from there on.
        hidden_from: layer → [L] bool, tokens that nothing can attend to from that layer on.
        deep: what is added behind the first layers, [L, D] each.
    """
    lm = backbone.decoder
    hide, size = torch.zeros(len(x), dtype=torch.bool), torch.ones(len(x))
    for i, layer in enumerate(lm.layers):
        if changes and i in changes:
            x, position, *sizes = changes[i](x, position)
            size = sizes[0].float() if sizes else torch.ones(len(x))
            hide = torch.zeros(len(x), dtype=torch.bool)
        if hidden_from and i in hidden_from:
            hide = hidden_from[i]
        allowed = torch.ones(len(x), len(x), dtype=torch.bool)
        allowed = allowed.tril() if causal else allowed
        allowed = allowed & ~hide | torch.eye(len(x), dtype=torch.bool)
        mask = size.log().to(x.dtype).expand(allowed.shape).masked_fill(~allowed, torch.finfo(x.dtype).min)[None, None]
        rope = lm.rotary_emb(x[None], position[None] if position.ndim == 1 else position[:, None])
        x = layer(x[None], attention_mask=mask, position_embeddings=rope)[0]
        x = x + deep[i] if i < len(deep) else x
    return lm.norm(x)


def attention_weights(backbone: Backbone, x: Tensor, layer: int) -> Tensor:
    """[H, L, L]: what eager attention returns in `layer` for one row."""
    backbone.model.set_attn_implementation("eager")
    try:
        out = backbone.decoder(inputs_embeds=x[None], output_attentions=True, use_cache=False)
    finally:
        backbone.model.set_attn_implementation("sdpa")
    return out.attentions[layer][0]
