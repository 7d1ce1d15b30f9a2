"""PruneSID (arXiv 2603.09480): prune redundancy, preserve essence."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.interface import Condensed, Tower, TowerCompressor, rank


class PruneSID(TowerCompressor):
    """Groups patches by the principal components of an image, drops what repeats within a group, and keeps the best of
    each, before the LLM; with `budget=mean` an image has the more tokens the less its patches are alike.

    X [T, d] is what the projector reads of the T patches.

    - PSCA: the principal components of σ(X)ᵀ, in which the patches are the variables: the eigenvectors of the T×T
      covariance over the d features that have the K greatest eigenvalues, K = ⌊N / 4⌋ (at least 1) for a budget of N
      tokens. A patch belongs to the component in which the magnitude of its entry is greatest.
    - NMS: ρ is the mean cosine over all pairs of the image's patches. In a group the patch with the best score stays
      and those with a cosine above τ = λ·ρ to it go, then the best of the others, and so on; λ = 18·N / T (N / 32 on
      576 patches). The score is what CLS pays, mean over heads; in a tower without CLS it is the magnitude in the
      patch's component, as in the paper.
    - Of group k the n_k best stay, those that are left of the NMS before those that went. n_k is 1 and a share of the
      other tokens, proportional to how many are left of the group and rounded so that the sums of the shares are right;
      no more than there are left, nor than 5·⌈N / 64⌉, unless all groups together can't hold N so. What is over goes to
      the groups of which most are left.
    - Information-aware dynamic compression ratio: φ = 1 − ρ, N′ ∝ φ. The paper doesn't say the factor, but that a
      benchmark has the same mean as without, and its code has none of it; here it is the one of `budget=mean`, at which
      the images of a task have `tokens` in the mean. All that depends on N above depends on N′ then. Where an image is
      seen in tiles its φ is their mean.

    Where paper and authors' code differ this is the code: it takes CLS for the score on LLaVA, centres each patch over
    its features (the paper: each feature over the patches), and deals n_k out as above. Unlike the code, which passes
    the CLS token on as one of the N, as LLaVA doesn't; finds the components by a randomised decomposition, here it is
    exact; keeps the tokens group by group, here in raster order; and, where there is no CLS, has 4 components and a λ
    of 1 at least, and the sum over pairs divided by T², about half of ρ.

    Args:
        tokens: default: a ninth (64 of 576).
    """

    name = "prunesid"
    about = "PruneSID: the best of what differs in each principal component of an image (arXiv 2603.09480)."
    reference = "test_prunesid.py::test_equals_the_paper_by_loops"
    incomparable = "the authors pass CLS on as a token, and draw the start of their decomposition"
    default_share = 1 / 9
    spreads = True

    @torch.no_grad()
    def condense(self, tower: Tower, count: int | None) -> Condensed:
        assert count is not None
        features = tower.patch_features().float()
        loading = components(features, max(1, count // 4))
        group = loading.argmax(2)
        score = loading.amax(2) if not tower.extra else tower.patch_attention(self.tower_layer).mean(1)
        similar = cosines(features)
        bound = (18 * count / similar.shape[1] * redundancy(features)).float()
        same, place = group[:, :, None] == group[:, None], rank(score)
        left = survivors(same & (similar > bound[:, None, None]) & (place[:, :, None] < place[:, None]))
        place = place + place.shape[1] * ~left  # what went stands behind all that is left
        within = (same & (place[:, :, None] < place[:, None])).sum(1)  # better ones of the same group
        members = F.one_hot(group, loading.shape[2])
        sizes, alive = torch.stack([members.sum(1), (members * left[..., None]).sum(1)]).tolist()
        each = torch.tensor([shares(a, s, count) for a, s in zip(alive, sizes, strict=True)], device=group.device)
        return Condensed(within < each.gather(1, group))

    @torch.no_grad()
    def rate_images(self, tower: Tower) -> Tensor:
        """φ = 1 − ρ."""
        return (1 - redundancy(tower.patch_features())).clamp(min=1e-6)

    def own_flops(self, text: int) -> float:
        """Covariance and cosines; eigenvectors, about 9·T³, are no product, and no counter has them."""
        return 4.0 * (self.shape.visual_tokens or 0) ** 2 * self.shape.vision.width * self.acts


def components(features: Tensor, count: int) -> Tensor:
    """[J, T, K]: magnitudes of the patches' entries in the first K = `count` principal components of σ(X)ᵀ."""
    squashed = features.double().sigmoid()
    centred = squashed - squashed.mean(2, keepdim=True)
    vectors: Tensor = torch.linalg.eigh(centred @ centred.transpose(1, 2)).eigenvectors  # by rising eigenvalues
    return vectors.flip(2)[..., :count].abs().float()


def cosines(features: Tensor) -> Tensor:
    """[J, T, T] of features [J, T, d]."""
    unit = F.normalize(features, dim=-1)
    return unit @ unit.transpose(1, 2)


def redundancy(features: Tensor) -> Tensor:
    """[J] float64: ρ, the mean cosine over all pairs of different patches; 0 for a single one.

    The cosines of all ordered pairs, each patch with itself among them, sum up to |Σ x / |x||².
    """
    unit, count = F.normalize(features.double(), dim=-1), features.shape[1]
    pairs = unit.sum(1).square().sum(1) - unit.square().sum((1, 2))
    return pairs / max(1, count * (count - 1))


def survivors(beats: Tensor) -> Tensor:
    """[J, T] bool: those that no survivor beats, where [j, s, t] says that s beats t if both are still there.

    Whoever is beaten is behind in rank: each round settles at least one more rank, and nothing that is settled moves.
    """
    left = torch.ones_like(beats[:, 0])
    while True:
        before = left
        for _ in range(4):  # rounds between two looks at whether all is settled, for which a device waits
            left = ~(beats & left[:, :, None]).any(1)
        if torch.equal(left, before):
            return left


def shares(left: Sequence[int], sizes: Sequence[int], count: int) -> list[int]:
    """How many of `count` tokens each group keeps, of `sizes` members of which `left` survive."""
    most = [min(n, 5 * ceil(count / 64)) for n in left]
    while sum(most) < count:
        most = [min(m + 1, size) for m, size in zip(most, sizes, strict=True)]
    least = [min(1, size) for size in sizes]
    rest = count - sum(least)
    ends = [round(rest * n / sum(left)) for n in accumulate(left)]
    each = [min(low + b - a, m) for low, a, b, m in zip(least, [0, *ends], ends, most, strict=False)]
    for k in sorted(range(len(left)), key=lambda k: -left[k]):
        each[k] += min(most[k] - each[k], count - sum(each))
    return each
