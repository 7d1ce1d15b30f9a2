"""EVS against loops in float64: every patch compared with its place in the previous frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sequences import layout, sequence

from vtc.errors import UserError
from vtc.interface import Context
from vtc.methods import build
from vtc.testing import tiny_backbone


def evenly(n: int, count: int) -> list[int]:
    """`count` of n places at even distances: the first of each of `count` runs whose lengths differ by one at most."""
    return [next(i for i in range(n) if i * count // n == g) for g in range(min(count, n))]


def kept_by_hand(frames: list[np.ndarray], tokens: int) -> set[tuple[int, int]]:
    """(frame, patch) that stay of one video."""
    budget, first = tokens * len(frames), len(frames[0])
    stays = range(first) if first <= budget else evenly(first, tokens)
    out = {(0, i) for i in stays}
    change = {}
    for t in range(1, len(frames)):
        for i, patch in enumerate(frames[t]):
            before = frames[t - 1][i] if i < len(frames[t - 1]) else None
            cosine = -1 if before is None else patch @ before / np.linalg.norm(patch) / np.linalg.norm(before)
            change[t, i] = 1 - cosine
    best = sorted(change, key=lambda at: (-change[at], at))
    return out | set(best[: max(0, budget - len(out))])


def frames_of(tokens, row: int) -> list[np.ndarray]:
    count = int(tokens.image[row].max()) + 1
    return [tokens.hidden[row, tokens.visual[row] & (tokens.image[row] == f)].double().numpy() for f in range(count)]


def kept(tokens, left, row: int) -> set[tuple[int, int]]:
    """(frame, patch) of the row's visual tokens that are left."""
    places = tokens.visual[row].nonzero()[:, 0].tolist()
    frame = tokens.image[row].tolist()
    number = {p: (frame[p], sum(frame[q] == frame[p] for q in places if q < p)) for p in places}
    return {number[o] for o in left.origin[row, left.visual[row]].tolist()}


VIDEOS = [[[9, 9, 9], [9]], [[9, 9, 9, 9, 9], [9, 9]], [[9]], [[9, 9], [9] * 6, [9]]]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("videos", VIDEOS, ids=str)
def test_keeps_what_changed_most(videos: list[list[int]], tokens: int, seed: int) -> None:
    shape = tiny_backbone(grid=3).shape
    given = sequence([layout(*row) for row in videos], seed=seed, compact=True)
    left = build("evs", tokens, shape).reduce(given, 0, Context(shape))
    for row, sizes in enumerate(videos):
        got = kept(given, left, row)
        assert got == kept_by_hand(frames_of(given, row), tokens)
        assert len(got) == tokens * len(sizes)


def test_a_still_picture_vanishes() -> None:
    """Of a video whose only change is one patch of the third frame, that patch is what is left beside the first."""
    shape = tiny_backbone(grid=3).shape
    given = sequence([layout(9, 9, 9, 9, 9)], compact=True)
    at = given.visual[0].nonzero()[:, 0].view(5, 9)
    given.hidden[0, at] = given.hidden[0, at[0]]
    given.hidden[0, at[2:, 4]] = torch.randn(8)
    left = build("evs", 2, shape).reduce(given, 0, Context(shape))
    assert kept(given, left, 0) >= {(0, i) for i in range(9)} | {(2, 4)}
    assert len(kept(given, left, 0)) == 10


def test_frames_of_different_sizes() -> None:
    shape = tiny_backbone(grid=3).shape
    given = sequence([layout(4, 9, 6)], compact=True)
    left = build("evs", 3, shape).reduce(given, 0, Context(shape))
    assert kept(given, left, 0) == kept_by_hand(frames_of(given, 0), 3)


def test_places_are_needed() -> None:
    shape = tiny_backbone().shape
    with pytest.raises(UserError, match="after divprune has no grid of places; put evs first"):
        build("divprune+evs", 4, shape)
    assert build("avgpool+evs", 3, shape).steps[1].part.shape.grid == (2, 4)
    with pytest.raises(UserError, match="put evs last"):
        build("evs+fastv", 4, shape)
    assert build("evs", None, tiny_backbone(grid=12).shape).tokens == 36
