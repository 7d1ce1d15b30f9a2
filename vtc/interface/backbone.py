"""What a method may touch of a backbone when it is attached to one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch


class AttachableBackbone(Protocol):
    """The part of `vtc.backbones.Backbone` that `Compressor.attach` may use.

    Attributes:
        tokenizer: of the LLM, to look a prompt up; None for a model that was built without one.
        device, dtype: of the LLM's embeddings.
    """

    @property
    def tokenizer(self) -> Any: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def add_adapters(self, names: Sequence[str], rank: int, alpha: int, dropout: float = 0.0) -> None:
        """Puts LoRA adapters of these names on the linear layers of the LLM, inactive until the engine runs one."""

    def add_tower_adapters(self, names: Sequence[str], rank: int, alpha: int, dropout: float = 0.0) -> None:
        """The same on the layers of the vision tower, up to the one that is projected."""
