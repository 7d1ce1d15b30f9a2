"""The vision towers of CLIP and SigLIP, whose layers are built alike in transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class ClipTower:
    """Parts of a backbone with such a tower, in front of `vtc.backbones.parts.Parts`."""

    vision_tower: Any

    @property
    def tower_layers(self) -> Sequence[Any]:
        return self.vision_tower.encoder.layers

    @property
    def tower_embeddings(self) -> Any:
        return self.vision_tower.embeddings

    def tower_halves(self, layer: int) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]:
        block = self.tower_layers[layer]

        def attend(hidden: Tensor, bias: Tensor) -> Tensor:
            return hidden + block.self_attn(block.layer_norm1(hidden), attention_mask=bias)[0]

        def mlp(hidden: Tensor) -> Tensor:
            return hidden + block.mlp(block.layer_norm2(hidden))

        return attend, mlp
