"""VTW (arXiv 2405.05803): visual tokens withdrawal, all of them after layer K."""

from __future__ import annotations

from collections.abc import Sequence

from vtc.interface import VISUAL, Compressor, Context, TokenSequence, layer_option


class VTW(Compressor):
    """Before layer K every visual token goes, and none stays (section 3.3): the text has read by then what it will.

    The caches of layers K… hold text alone, and positions stay. The authors choose K by a calibration: the first layer
    from which withdrawal moves the logits by less than a threshold; here it is given.

    With another method's layer it is that method's floor inside the LLM: what the prompt's own tokens have read of the
    picture in the layers before, when nothing of the picture is kept.
    """

    name = "vtw"
    about = "VTW: before a layer of the LLM every visual token is withdrawn (arXiv 2405.05803)."
    reference = "test_vtw.py::test_text_alone_goes_on_at_its_own_positions"
    # Half of LLaVA-1.5-7B's layers.
    layer: int = layer_option(16, "all visual tokens are withdrawn before this decoder layer", lowest=1)

    def layers(self) -> set[int]:
        return {self.layer}

    def offers(self) -> Sequence[int]:
        return [0]

    def layer_tokens(self) -> list[int]:
        return [self.shape.visual_tokens or 0] * self.layer + [0] * (self.shape.depth - self.layer)

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        return tokens.drop(VISUAL)
