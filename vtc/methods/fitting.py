"""How FitPrune's recipe is fitted (arXiv 2409.10197): the least strength alpha at which the budget is met."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.interface import ATTENTION, BackboneShape, Compressor, Context, TokenSequence
from vtc.methods.fitprune import attention

Counts = Sequence[Sequence[int]]  # of each image the visual tokens that each decoder layer sees
PRECISION = 0.01  # of alpha


class Fitting(Compressor):
    """A pass of the fit over some images: in every layer drops the visual tokens that both statistics can spare.

    Of the attention that a layer paid, `self` and `cross` of FitPrune, each can spare the tokens that get least, as
    many as can go while the rest gets (1 − alpha) of what all visual tokens get in that layer of the whole model. The
    tokens in both sets are dropped. The authors drop them inside the layer, FitPrune behind it, and so does this.

    An image keeps at least one token, the best by self · cross (the authors' code would go on without any).

    Attributes:
        alpha: strength, from 0 to 1.
        unpruned: layer → [2, I] what all visual tokens of each image get of self and cross in it. Where none is given,
            nothing is dropped, and this is what the pass finds.
        left: layer → [I] visual tokens of each image that the layer sees, of layers 1… .
    """

    name = "fitting"
    needs = (ATTENTION,)
    reads_prompt = True

    def __init__(self, shape: BackboneShape, alpha: float = 0.0, unpruned: dict[int, Tensor] | None = None) -> None:
        super().__init__(None, shape)
        self.alpha, self.given = alpha, unpruned is not None
        self.unpruned: dict[int, Tensor] = unpruned or {}
        self.left: dict[int, Tensor] = {}

    def layers(self) -> set[int]:
        return {*range(1, self.shape.depth)}

    def probes(self) -> set[int]:
        return {*range(self.shape.depth - 1)}

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        index, real = (of_images.cpu() for of_images in tokens.images)  # not every device has float64
        self.left.setdefault(0, real.sum(1))
        paid = attention(tokens, context)
        own, cross = (one.cpu().double().flatten()[index].masked_fill(~real, 0) for one in paid)
        if not self.given:
            self.unpruned[layer - 1] = torch.stack([own.sum(1), cross.sum(1)])
            self.left[layer] = real.sum(1)
            return tokens
        whole = self.unpruned[layer - 1]
        goes = spared(own, real, whole[0], self.alpha) & spared(cross, real, whole[1], self.alpha)
        best = torch.zeros_like(real).scatter(1, (own * cross).masked_fill(~real, -1).argmax(1, keepdim=True), True)
        goes &= ~((goes == real).all(1, keepdim=True) & best)
        self.left[layer] = (real & ~goes).sum(1)
        return tokens.keep_visual(~goes.to(tokens.mask.device))

    def tokens_seen(self) -> list[list[int]]:
        """Of each image the visual tokens that each layer saw; none where the pass brought no image."""
        return torch.stack([self.left[layer] for layer in sorted(self.left)], 1).tolist() if self.left else []


def spared(paid: Tensor, real: Tensor, unpruned: Tensor, alpha: float) -> Tensor:
    """[I, N] bool: the tokens of each image that get least, as many as can go while what the others get stays at or
    above (1 − alpha) · unpruned.

    Args:
        paid: [I, N] what each gets by one of the two statistics; real: [I, N] bool, which there are.
        unpruned: [I].
    """
    values = paid.double().masked_fill(~real, 0)
    order = values.masked_fill(~real, float("inf")).argsort(dim=1, stable=True)
    left = values.sum(1, keepdim=True) - values.gather(1, order).cumsum(1)  # behind the drop of each and all before it
    goes = left.clamp(min=0) >= (1 - alpha) * unpruned.double()[:, None]
    return torch.zeros_like(real).scatter(1, order, goes) & real


@dataclass(frozen=True)
class Fit:
    """What a fit came to.

    Attributes:
        alpha: the strength.
        left: share of the visual tokens that is left in the end.
        shares: for each decoder layer the share of all drops that is done before it.
        layer_tokens: visual tokens that each layer sees, mean over the images.
    """

    alpha: float
    left: float
    shares: list[float]
    layer_tokens: list[float]


def until_met(counts: Counts, is_met: Callable[[Counts], bool]) -> Counts | None:
    """The counts where pruning stops at the first layer behind which the budget is met if nothing more is dropped; None
    where it never is."""
    depth = len(counts[0])
    for layer in range(depth):
        stopped = [[*row[: layer + 1], *[row[layer]] * (depth - layer - 1)] for row in counts]
        if is_met(stopped):
            return stopped
    return None


def fitted(
    run: Callable[[float], Counts], is_met: Callable[[Counts], bool], tell: Callable[[float, Counts, bool], None]
) -> Fit | None:
    """The recipe of the least alpha at which the budget is met, to `PRECISION`; None where it isn't even at 1.

    The authors' bisection, which ends with the last alpha that it tried; here it is the least that was seen to do.

    Args:
        run: the counts of all images at an alpha.
        is_met: whether counts are within the budget.
        tell: called with each alpha, its counts and whether they do.
    """
    low, high = 0.0, 1.0
    best: Counts | None = None
    while high - low > PRECISION + 1e-6 or best is None:
        alpha = (low + high) / 2 if high - low > PRECISION + 1e-6 else 1.0  # which was seen to do for no alpha below
        counts = run(alpha)
        stopped = until_met(counts, is_met)
        tell(alpha, stopped or counts, stopped is not None)
        if stopped is not None:
            high, best = alpha, stopped
        elif alpha == 1.0:
            return None
        else:
            low = alpha
    return fit_of(high, best)


def fit_of(alpha: float, counts: Counts) -> Fit:
    """Counts as a recipe: what is dropped before each layer, of all images together."""
    images, dropped = len(counts), [sum(row[0] - row[layer] for row in counts) for layer in range(len(counts[0]))]
    return Fit(
        alpha=alpha,
        left=sum(row[-1] / row[0] for row in counts) / images,
        shares=[count / dropped[-1] for count in dropped],
        layer_tokens=[sum(row[layer] for row in counts) / images for layer in range(len(counts[0]))],
    )
