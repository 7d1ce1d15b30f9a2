"""DivPrune against the greedy search written as loops in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sequences import layout, sequence

from vtc.interface import Context
from vtc.methods import build
from vtc.methods.divprune import farthest_first
from vtc.testing import tiny_backbone


def distances(points: np.ndarray) -> np.ndarray:
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    return 1 - unit @ unit.T


def greedy(points: np.ndarray, count: int) -> list[int]:
    """The picks in their order."""
    d, n = distances(points), len(points)
    picked: list[int] = []
    while len(picked) < min(count, n):
        others = [i for i in range(n) if i not in picked]
        nearest = {i: min((d[i, j] for j in (picked or range(n)) if j != i), default=np.inf) for i in others}
        picked.append(max(others, key=lambda i: (nearest[i], -i)))
    return picked


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("images", "count"), [([[20, 7], [13]], 5), ([[16]], 1), ([[9, 9], [9, 4]], 8), ([[3]], 2)])
def test_keeps_what_the_greedy_search_finds(images: list[list[int]], count: int, seed: int) -> None:
    shape = tiny_backbone().shape
    tokens = sequence([layout(*row) for row in images], seed=seed, compact=True)
    method = build("divprune", count, shape)
    left = method.reduce(tokens, 0, Context(shape))
    for row, sizes in enumerate(images):
        expected = [i for i in range(tokens.mask.shape[1]) if tokens.mask[row, i] and not tokens.visual[row, i]]
        for image in range(len(sizes)):
            places = (tokens.visual[row] & (tokens.image[row] == image)).nonzero()[:, 0]
            picks = greedy(tokens.hidden[row, places].double().numpy(), count)
            expected += [int(places[p]) for p in picks]
        assert left.origin[row, left.mask[row]].tolist() == sorted(expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_picks(seed: int) -> None:
    points = torch.randn(1, 15, 6, generator=torch.Generator().manual_seed(seed))
    rank = farthest_first(points, torch.ones(1, 15, dtype=torch.bool), 15)[0]
    assert rank.argsort(descending=True).tolist() == greedy(points[0].double().numpy(), 15)


def test_at_least_half_as_diverse_as_the_best_subset() -> None:
    """The greedy search starts at a token far from all, so its smallest distance is at least half the optimum's in a
    metric: here with angles instead of cosines, which order the tokens alike."""
    points = torch.randn(1, 12, 3, generator=torch.Generator().manual_seed(1))
    angle = np.arccos(np.clip(1 - distances(points[0].double().numpy()), -1, 1))
    kept = farthest_first(points, torch.ones(1, 12, dtype=torch.bool), 5)[0].nonzero()[:, 0].tolist()

    def smallest(subset) -> float:
        return min(angle[i, j] for i, j in itertools.combinations(subset, 2))

    best = max(smallest(s) for s in itertools.combinations(range(12), 5))
    assert smallest(kept) >= best / 2


def test_lengths_do_not_matter_and_equal_tokens_are_counted() -> None:
    points = torch.randn(2, 10, 4, generator=torch.Generator().manual_seed(2))
    real = torch.ones(2, 10, dtype=torch.bool)
    scaled = points * torch.tensor([1.0, 8.0, 0.25, 4.0, 2.0] * 2)[:, None]
    assert torch.equal(farthest_first(points, real, 4), farthest_first(scaled, real, 4))
    same = farthest_first(torch.ones(1, 6, 3), torch.ones(1, 6, dtype=torch.bool), 4)
    assert same.tolist() == [[4, 3, 2, 1, 0, 0]]


def test_default() -> None:
    assert build("divprune", None, tiny_backbone(grid=24).shape).tokens == 56  # the paper's 9.8 %
