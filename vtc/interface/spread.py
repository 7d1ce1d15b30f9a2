"""A budget that is a mean over images: each has as many tokens as its complexity gives it (`budget=mean`).

An image of complexity φ has ⌊c·φ⌋ tokens. The scale c belongs to a set of images: it is the greatest one at which they
have no more than `tokens` in the mean. So an image has the same tokens in whatever batch it comes, and images that
come later have theirs without another look at the set.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

CLOSE = 1e-6  # relative: complexities that differ by less are told apart by rounding alone


def spread(complexity: Tensor, sizes: Tensor, scale: float) -> Tensor:
    """[I]: ⌊scale · complexity⌋ of each image, at least one token and at most all of its `sizes`."""
    return torch.minimum((complexity.double() * scale).floor(), sizes.double()).clamp(min=1).long()


def scale_of(
    complexity: Sequence[float], sizes: Sequence[int], tokens: int, weights: Sequence[float] | None = None
) -> float:
    """The greatest scale at which images have at most `tokens` tokens in the mean.

    As the scale rises, images gain their tokens one by one, alike ones (`CLOSE`) together. What the mean lacks is less
    than what those that would gain the next token together would add: with one image among n, less than 1 / n.

    Args:
        complexity: of each image, > 0.
        sizes: visual tokens that each has.
        weights: how much each counts in the mean; None: the same.

    Raises:
        ValueError: a complexity that isn't a number above 0.
    """
    given, most = np.asarray(complexity, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    weight = np.ones_like(given) if weights is None else np.asarray(weights, dtype=np.float64)
    if not given.size or not (np.isfinite(given) & (given > 0)).all():
        raise ValueError("the complexity of an image is a number above 0")
    limit = tokens * weight.sum() * (1 + 1e-12)  # sums of thirds are rounded

    def counts(scale: float) -> np.ndarray:
        return np.clip(np.floor(scale * given), 1, most)

    low, high = 0.0, 2 * float((most / given).max())
    if weight @ counts(high) <= limit:
        return high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if weight @ counts(middle) <= limit else (low, middle)
    # Halfway between the last token that was gained and the next one, so that rounding in another batch decides
    # nothing; where these two come together, before both.
    while True:
        gained = counts(low)
        last = float((gained / given)[(gained > 1) & (gained <= low * given)].max(initial=0.0))
        if last <= high * (1 - CLOSE):
            return (last + high) / 2
        low, high = last * (1 - 1e-12), last
