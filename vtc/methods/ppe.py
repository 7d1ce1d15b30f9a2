"""PPE (arXiv 2510.22936): positional preservation embedding for multimodal large language models."""

from __future__ import annotations

from collections.abc import Sequence

from vtc.allowed import whole
from vtc.interface import Compressor, Context, TokenSequence, layer_option, option


class PPE(Compressor):
    """Behind a method that merges tokens: a merged one keeps the positions of several of its members, each in other
    channels of the rotary embedding.

    RoPE turns channel d of a query or key at position m by m·θ_d, each channel by itself, so that a token may have
    another position m_d in each. One that was merged of n members has the positions of K of them: the channels of an
    axis (time, height and width in M-RoPE, eq. 6; elsewhere there is one axis, eq. 5) are cut into K equal runs by
    falling θ_d, and run k turns by the place of the k-th member on this axis. All other tokens have their one position
    in all channels. There are no parameters, and which tokens merge, how, and how many are left is the business of the
    method before. What merges behind it, at a later layer, has K of all its members' positions too, in the paper's
    cascade those of its merged tokens, fewer of each (in the authors' code those of one of them).

    Which K of more members: the paper's are nearest to the centre of their cluster, which a method doesn't say here,
    and the authors' code leaves it to a sort of equal weights; here they are taken evenly in raster order, and fewer
    than K in turn, as in the code. Where K doesn't divide an axis, the authors cut all axes into single channels; here
    the runs differ by one channel. Positions are those of the user's sequence: where the method before acts before the
    LLM, gaps that it closed are open again, as in M-RoPE, the only one that the authors have.

    Members are known by where a merged token came from. What a method merges by the vision tower's features (VisionZip,
    PruMerge) has none but itself.

    Args:
        tokens: all that it finds.
    """

    name = "ppe"
    about = "PPE: behind a merger, a merged token keeps several of its members' positions (arXiv 2510.22936)."
    reference = "test_ppe.py::test_equals_a_decoder_whose_channels_turn_by_members"
    incomparable = "which members' positions the authors take is left to an unstable sort"
    repairs = True
    layer: int = layer_option(2, "before this decoder layer: that of the method before it; 0: before the LLM")
    # K of the authors' settings.
    positions: int = option(8, "K, of how many members a merged token has the positions", allowed=whole(1))

    def layers(self) -> set[int]:
        return {self.layer}

    def default_tokens(self) -> int | None:
        return self.shape.visual_tokens

    def offers(self) -> Sequence[int]:
        return [self.shape.visual_tokens] if self.shape.visual_tokens else []

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        return tokens.restored(self.positions)
