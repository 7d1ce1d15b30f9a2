"""Running a backbone under a compression method: `with compressing(model, method) as engine: model.generate(...)`.

The only place that knows positions, masks, caches and padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vtc.backbones.base import Backbone
from vtc.engine.embed import embed_images, embed_texts, encode_images, encode_texts, visual_tokens
from vtc.engine.engine import Engine
from vtc.engine.passes import attach, run_decoder
from vtc.engine.report import Report
from vtc.interface import Compressor

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "VERSION",
    "Engine",
    "Report",
    "compressing",
    "embed_images",
    "embed_texts",
    "encode_images",
    "encode_texts",
    "run_decoder",
    "visual_tokens",
]


VERSION = 1  # Raised when what a method computes through the engine changes: its numbers, not its speed.


@contextmanager
def compressing(model: nn.Module | Backbone, method: Compressor) -> Iterator[Engine]:
    """Installs `method` in the backbone; whatever happens inside, it is removed at the end.

    `model(**inputs)` and `model.generate(...)` then work as ever, on fewer visual tokens. The model's class and
    weights stay as they are; a method with LoRA adapters (Fwd2Bot) has them injected beside the weights, inactive
    outside.

    Args:
        model: a `Backbone`, or a transformers model of a known family (also inside DDP or a PeftModel).

    Raises:
        UserError: a model of no known family, or one that can't be compressed (sliding windows).
    """
    from vtc.backbones import wrap

    backbone = model if isinstance(model, Backbone) else wrap(model)
    attach(backbone, method)
    engine = Engine(backbone, method)
    engine.install()
    try:
        yield engine
    finally:
        engine.remove()
