"""No compression: the backbone as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vtc.interface import Compressor

if TYPE_CHECKING:
    from vtc.interface import BackboneShape


class NoCompression(Compressor):
    """All visual tokens in every layer: the base that every ratio is relative to."""

    name = "none"

    def __init__(self, tokens: int | None, shape: BackboneShape) -> None:
        super().__init__(tokens, shape)

    @classmethod
    def offers(cls, shape: BackboneShape, **options: Any) -> Sequence[int]:
        return [shape.visual_tokens] if shape.visual_tokens else []
