"""MyMethod: keeps the visual tokens with the largest norm, the simplest guess at which ones matter."""

from torch import Tensor

from vtc.interface import Context, TokenPruner, TokenSequence, option


class MyMethod(TokenPruner):
    """Before the LLM, keeps the visual tokens whose embedding has the largest (or smallest) p-norm."""

    name = "my_method"
    about = "MyMethod: keeps the visual tokens with the largest norm."
    p: float = option(2.0, "which norm")
    quiet: bool = option(False, "keep the smallest instead, to see whether the norm says anything")

    def score(self, tokens: TokenSequence, context: Context) -> Tensor:
        """[B, L], higher is kept; the base class does budgets, padding and several images."""
        norm = tokens.hidden.float().norm(p=self.p, dim=-1)
        return -norm if self.quiet else norm
