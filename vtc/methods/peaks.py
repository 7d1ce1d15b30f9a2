"""Density peaks over nearest neighbours (DPC-kNN): what FastVID, HoliTom and PruneVid share."""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.interface import rank


@torch.no_grad()
def density(x: Tensor, nearest: int) -> tuple[Tensor, Tensor]:
    """Density peaks (DPC-kNN) of x [n, D]: the scores ρ·δ [n], and all distances [n, n], Euclidean over √D.

    ρ = exp(−mean of the squared distances to the `nearest`, itself one of them), δ the distance to the nearest that is
    denser, or of equal ρ and earlier, else the greatest of all: of equal tokens only the first is far from denser ones.
    """
    apart = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") / x.shape[1] ** 0.5
    rho = (-apart.topk(min(nearest, len(x)), largest=False).values.square().mean(1)).exp()
    place = rank(rho[None])[0]
    return rho * torch.where(place[None] < place[:, None], apart, apart.amax()).amin(1), apart


@torch.no_grad()
def peaks(x: Tensor, count: int, nearest: int) -> tuple[Tensor, Tensor]:
    """The places of the `count` centres of x [n, D], which have the greatest `density`, in order; and which of these
    each of x belongs to, [n]: the nearest."""
    score, apart = density(x, nearest)
    centre = score.argsort(descending=True, stable=True)[:count].sort().values
    joins = apart[:, centre].argmin(1)
    joins[centre] = torch.arange(len(centre), device=x.device)
    return centre, joins
