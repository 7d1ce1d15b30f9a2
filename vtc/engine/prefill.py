"""A pass of the decoder over short prompts, compiled once for all lengths.

What a question about a stored image waits for is mostly the start of a pass's operations, an adapter's products among
them, and little arithmetic: that is what compiling takes away. It runs the decoder's own layers, so that there is one
code path for all families; the last hidden states are those of `Walk`, which stays the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
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


PASSES = 8  # that a backbone keeps


@dataclass(frozen=True)
class Filled:
    """What a pass has left in each layer: keys, values [B, H, L, d]."""

    keys: list[Tensor]
    values: list[Tensor]

    def cache(self, decoder: Any) -> DynamicCache:
        """As transformers' layers go on from it. Making it takes longer than a layer does: nothing that ends with the
        first token needs it.
        """
        cache = DynamicCache(config=decoder.config)
        for layer, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            cache.update(key, value, layer)
        return cache


class Prefill:
    """The pass of a backbone's decoder, under the adapter that is active when it is compiled. Hooks of its modules, if
    they come later, aren't called."""

    def __init__(self, backbone: Backbone) -> None:
        self.decoder = backbone.decoder
        self._layers = decoding.compiled(self, Prefill.layers, backbone.device)

    @classmethod
    def run(
        cls, backbone: Backbone, adapter: str | None, hidden: Tensor, position: Tensor, mask: Tensor
    ) -> tuple[Tensor, Filled]:
        """Last hidden states [B, L, D], and what the layers have left.

        Args:
            hidden: [B, L, D] embeddings. position: [P, B, L]. mask: [B, L] bool, the real tokens.

        Raises:
            UserError: the pass can't be compiled.
        """
        tuners = adapters.tuner_layers(backbone.decoder)
        with adapters.active(tuners, [adapter] if adapter else []):
            return cls._of(backbone, (adapter, len(tuners)), len(hidden))._run(hidden, position, mask)

    @classmethod
    def _of(cls, backbone: Backbone, tuned: tuple, rows: int) -> Prefill:
        """The one that the backbone keeps, made where there is none yet; those asked for last are kept."""
        passes: dict[Any, Prefill] = backbone.__dict__.setdefault("prefills", {})
        key = (*tuned, rows, backbone.dtype, backbone.device)
        found = passes.pop(key, None)
        if found is None:
            if why := decoding.uncompilable(backbone):
                raise UserError(f"compiled=True: {why}")
            found = cls(backbone)
        passes[key] = found
        while len(passes) > PASSES:
            del passes[next(iter(passes))]
        return found

    def _run(self, hidden: Tensor, position: Tensor, mask: Tensor) -> tuple[Tensor, Filled]:
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
        return last, Filled(keys, values)

    def layers(self, hidden: Tensor, position: Tensor, pairs: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """All layers. pairs: [B, 1, L, L] additive."""
        kept = Kept()
        rope = self.decoder.rotary_emb(hidden, position[0] if len(position) == 1 else position)
        arguments = {CACHE: kept, "use_cache": True, "position_embeddings": rope}
        for layer in self.decoder.layers:
            hidden = layer(hidden, attention_mask=pairs, **arguments)
        return self.decoder.norm(hidden), kept.keys, kept.values
