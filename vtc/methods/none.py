"""No compression: the backbone as it is."""

from __future__ import annotations

from collections.abc import Sequence

from vtc.interface import Compressor


class NoCompression(Compressor):
    """All visual tokens in every layer: the base that every ratio is relative to."""

    name = "none"
    about = "The uncompressed backbone: every visual token, the base of every ratio."
    reference = "test_contracts.py::test_contract"
    incomparable = "the backbone itself"

    def offers(self) -> Sequence[int]:
        return [self.shape.visual_tokens] if self.shape.visual_tokens else []
