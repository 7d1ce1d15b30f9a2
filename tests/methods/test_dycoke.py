"""DyCoke's temporal merging against loops in float64."""

from __future__ import annotations

import numpy as np
import pytest
from sequences import layout, sequence
from test_evs import evenly, frames_of, kept

from vtc.interface import Context
from vtc.methods import build
from vtc.testing import tiny_backbone


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def kept_by_hand(frames: list[np.ndarray], tokens: int) -> set[tuple[int, int]]:
    budget, size = tokens * len(frames), len(frames[0])
    firsts = [t for t in range(len(frames)) if t % 4 == 0]
    stays = range(size) if size * len(firsts) <= budget else evenly(size, tokens)
    out = {(t, i) for t in firsts for i in stays}
    others = [t for t in range(len(frames)) if t % 4]
    least = {}  # of each frame that is thinned, its patches from the least similar on
    for t in others:
        other = {1: t - 1, 2: t - 2, 3: t - 1}[t % 4]
        least[t] = sorted(range(size), key=lambda i: (cosine(frames[t][i], frames[other][i]), i))
    left, extra = divmod(budget - len(out), len(others)) if others else (0, 0)
    for n, t in enumerate(others):  # equally many of each; the same rank in several frames: the earlier first
        out |= {(t, i) for i in least[t][: left + (1 if n < extra else 0)]}
    return out


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tokens", [1, 3, 4, 6, 8])
@pytest.mark.parametrize("videos", [[[9] * 4, [9]], [[9] * 8, [9] * 5, [9] * 2], [[9]], [[9] * 3, [9] * 7]], ids=str)
def test_merges_what_repeats(videos: list[list[int]], tokens: int, seed: int) -> None:
    shape = tiny_backbone(grid=3).shape
    given = sequence([layout(*row) for row in videos], seed=seed, compact=True)
    left = build("dycoke", tokens, shape).reduce(given, 0, Context(shape))
    for row, sizes in enumerate(videos):
        got = kept(given, left, row)
        assert got == kept_by_hand(frames_of(given, row), tokens)
        assert len(got) == tokens * len(sizes)


def test_first_frames_stay_as_they_are() -> None:
    shape = tiny_backbone(grid=3).shape
    given = sequence([layout(*[9] * 8)], compact=True)
    left = build("dycoke", 6, shape).reduce(given, 0, Context(shape))
    counts = [sum(f == frame for f, _ in kept(given, left, 0)) for frame in range(8)]
    assert counts == [9, 5, 5, 5, 9, 5, 5, 5]  # 48 = 2 · 9 + 6 · 5
    assert build("dycoke", None, tiny_backbone(grid=12).shape).tokens == 72
