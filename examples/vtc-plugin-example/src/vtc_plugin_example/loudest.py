"""Loudest: keeps the visual tokens with the largest norm, the simplest guess at which ones matter."""

from torch import Tensor

from vtc.interface import BackboneShape, Context, TokenPruner, TokenSequence


class Loudest(TokenPruner):
    """Before the LLM, keeps the visual tokens whose embedding has the largest (or smallest) p-norm.

    Args:
        tokens: visual tokens an image has left.
        shape: the backbone's sizes.
        p: which norm.
        quiet: keep the smallest instead, to see whether the norm says anything.
    """

    name = "loudest"

    def __init__(self, tokens: int | None, shape: BackboneShape, p: float = 2.0, quiet: bool = False) -> None:
        super().__init__(tokens, shape, layer=0)
        self.p, self.quiet = p, quiet

    def score(self, tokens: TokenSequence, context: Context) -> Tensor:
        """[B, L], higher is kept; the base class does budgets, padding and several images."""
        norm = tokens.hidden.float().norm(p=self.p, dim=-1)
        return -norm if self.quiet else norm
