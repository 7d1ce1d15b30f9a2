"""A method that looks and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from vtc.interface import Compressor, Context, TokenSequence


class Observer(Compressor):
    """Notes what `ask` learns before `layer`, behind `probed` ones, and changes nothing."""

    def __init__(
        self, shape: Any, layer: int, ask: Callable[[TokenSequence, Context], Any], probed: Collection[int] = ()
    ) -> None:
        super().__init__(None, shape)
        self.layer, self.ask, self.probed = layer, ask, set(probed)

    def layers(self) -> set[int]:
        return {self.layer}

    def probes(self) -> set[int]:
        return self.probed

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        self.observed = self.ask(tokens, context)
        return tokens
