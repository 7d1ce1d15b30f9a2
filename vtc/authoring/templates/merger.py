"""MyMethod: averages runs of neighbouring visual tokens, the simplest guess at which ones say the same."""

from torch import Tensor

from vtc.interface import Context, TokenMerger, TokenSequence, layer_option


class MyMethod(TokenMerger):
    """Before one decoder layer, replaces runs of visual tokens in raster order, equally long, by their mean."""

    name = "my_method"
    about = "MyMethod: averages runs of neighbouring visual tokens."
    default_share = 1 / 4
    layer: int = layer_option(0, "before this decoder layer; 0: before the LLM")

    def assign(self, tokens: TokenSequence, context: Context) -> tuple[Tensor, None]:
        """The group of each token of each image, [I, N], -1 for padding; and no weights: the plain mean."""
        _, real = tokens.images
        count = real.sum(1, keepdim=True)  # images may differ in size
        left = count if self.tokens is None else count.clamp(max=self.tokens)
        place = real.cumsum(1) - 1
        return (place * left // count).masked_fill(~real, -1), None
