"""A pass of the decoder over short prompts, compiled once for all lengths.

What a question about a stored image waits for is mostly the start of a pass's operations, an adapter's products among
them, and little arithmetic: that is what compiling takes away. It runs the decoder's own layers, so that there is one
code path for all families; the last hidden states are those of `Walk`, which stays the reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from vtc.backbones import adapters
from vtc.backbones.loading import first_line
from vtc.engine import decoding
from vtc.engine.cache import CACHE
from vtc.errors import UserError

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone


class Kept:
    """The cache that layers are given: it holds what they write.

    Attributes:
        keys, values: [B, H, L, d] of each layer.
    """

    is_compileable = True

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Called by the layers in their order."""
        self.keys.append(key)
        self.values.append(value)
        return key, value


class Prefill:
    """The pass of a backbone's decoder, under the adapter that is active when it is compiled. Hooks of its modules, if
    they come later, aren't called."""

    def __init__(self, backbone: Backbone) -> None:
        self.decoder = backbone.decoder
        self._layers = decoding.compiled(self, Prefill.layers, backbone.device)

    @classmethod
    def of(cls, backbone: Backbone, adapter: str | None, rows: int) -> Prefill:
        """The one that the backbone keeps, made where there is none yet.

        Raises:
            UserError: what the decoder is can't be compiled.
        """
        passes: dict[Any, Prefill] = backbone.__dict__.setdefault("prefills", {})
        key = (adapter, len(adapters.tuner_layers(backbone.decoder)), rows, backbone.dtype, backbone.device)
        if key not in passes:
            if why := decoding.uncompilable(backbone):
                raise UserError(f"compiled=True: {why}")
            passes[key] = cls(backbone)
        return passes[key]

    def run(self, hidden: Tensor, position: Tensor, mask: Tensor) -> tuple[Tensor, DynamicCache]:
        """Last hidden states [B, L, D], and the cache.

        Args:
            hidden: [B, L, D] embeddings. position: [P, B, L]. mask: [B, L] bool, the real tokens.

        Raises:
            UserError: the pass can't be compiled.
        """
        length = mask.shape[1]
        allowed = (mask[:, None] & torch.ones_like(mask)[..., None]).tril()
        allowed |= torch.eye(length, dtype=torch.bool, device=mask.device)  # no softmax over nothing
        pairs = hidden.new_zeros(allowed.shape).masked_fill_(~allowed, torch.finfo(hidden.dtype).min)[:, None]
        for tensor, axes in ((hidden, (1,)), (position, (2,)), (pairs, (2, 3))):
            for axis in axes:
                torch._dynamo.mark_dynamic(tensor, axis)
        try:
            last, keys, values = self._layers(hidden, position, pairs)
        except decoding.refusals() as error:
            raise UserError(f"compiled=True: the pass can't be compiled ({first_line(error)})") from None
        cache = DynamicCache(config=self.decoder.config)
        for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
            cache.update(key, value, layer)
        return last, cache

    def layers(self, hidden: Tensor, position: Tensor, pairs: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """All layers. pairs: [B, 1, L, L] additive."""
        kept = Kept()
        rope = self.decoder.rotary_emb(hidden, position[0] if len(position) == 1 else position)
        arguments = {CACHE: kept, "use_cache": True, "position_embeddings": rope}
        for layer in self.decoder.layers:
            hidden = layer(hidden, attention_mask=pairs, **arguments)
        return self.decoder.norm(hidden), kept.keys, kept.values
