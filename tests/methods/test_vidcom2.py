"""VidCom² against loops in float64, and the shares of the frames against the paper's formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sequences import layout, sequence
from test_evs import frames_of, kept

from vtc.errors import UserError
from vtc.interface import Context
from vtc.methods import build
from vtc.testing import tiny_backbone


def scores(frames: list[np.ndarray]) -> tuple[list[list[float]], list[list[float]]]:
    """How typical each token is of the video and of its frame."""
    every = np.concatenate(frames)
    channels = sorted(range(every.shape[1]), key=lambda c: (every[:, c].var(), c))[: every.shape[1] // 2]
    unit = [[v[channels] / np.linalg.norm(v[channels]) for v in f] for f in frames]
    middle = sum(v for f in unit for v in f) / sum(map(len, unit))

    def alike(v: np.ndarray, centre: np.ndarray) -> float:
        return sum(math.exp(-((v - centre) ** 2).sum() / 2 / alpha) for alpha in (1 / 8, 1 / 4, 1 / 2, 1, 2))

    return [[alike(v, middle) for v in f] for f in unit], [[alike(v, sum(f) / len(f)) for v in f] for f in unit]


def shares(video: list[list[float]], tokens: int, temperature: float) -> list[float]:
    unique = [-sum(f) / len(f) / temperature for f in video]
    top = max(unique)
    part = [math.exp(u - top) for u in unique]
    return [tokens * (1 + p / sum(part) - 1 / len(part)) for p in part]


def kept_by_hand(frames: list[np.ndarray], tokens: int, temperature: float) -> set[tuple[int, int]]:
    video, own = scores(frames)
    share, total = shares(video, tokens, temperature), tokens * len(frames)
    count = [1] * len(frames)
    while sum(count) < total:  # one by one to the frame that is furthest below its share; equal as float32 would see it
        room = [t for t in range(len(frames)) if count[t] < len(frames[t])]
        count[max(room, key=lambda t: (round(share[t] - count[t], 5), -t))] += 1
    order = [sorted(range(len(f)), key=lambda i: (video[t][i] + own[t][i], i)) for t, f in enumerate(frames)]
    return {(t, i) for t, ranked in enumerate(order) for i in ranked[: count[t]]}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("tokens", [1, 3, 5, 8])
@pytest.mark.parametrize("videos", [[[9] * 4, [9]], [[9] * 6, [9] * 3], [[9]], [[9, 12, 10], [11]]], ids=str)
def test_keeps_what_is_unique(videos: list[list[int]], tokens: int, temperature: float, seed: int) -> None:
    shape = tiny_backbone(grid=3).shape
    given = sequence([layout(*row) for row in videos], seed=seed, compact=True)
    left = build("vidcom2", tokens, shape, temperature=temperature).reduce(given, 0, Context(shape))
    for row, sizes in enumerate(videos):
        got = kept(given, left, row)
        assert got == kept_by_hand(frames_of(given, row), tokens, temperature)
        assert len(got) == tokens * len(sizes)


def test_counts_are_the_shares_rounded() -> None:
    """Where no frame is short of tokens, each gets its share of the paper's formula, rounded up or down."""
    shape = tiny_backbone(grid=6).shape
    for seed in range(5):
        given = sequence([layout(*[36] * 5)], seed=seed, compact=True)
        left = build("vidcom2", 11, shape, temperature=0.05).reduce(given, 0, Context(shape))
        counts = [sum(f == frame for f, _ in kept(given, left, 0)) for frame in range(5)]
        expected = shares(scores(frames_of(given, 0))[0], 11, 0.05)
        assert all(abs(c - e) < 1 for c, e in zip(counts, expected, strict=True)) and sum(counts) == 55


@pytest.mark.parametrize("seed", range(5))
def test_the_odd_frame_gets_more(seed: int) -> None:
    """Four frames of one thing, a little noise aside, and one of its opposite: every channel tells them apart."""
    shape = tiny_backbone(grid=3).shape
    given = sequence([layout(*[9] * 5)], seed=seed, compact=True)
    at = given.visual[0].nonzero()[:, 0].view(5, 9)
    noise = 0.01 * torch.randn(5, 9, 8, generator=torch.Generator().manual_seed(seed))
    side = torch.tensor([1.0, 1, 1, -1, 1])[:, None, None]
    given.hidden[0, at] = side * given.hidden[0, at[0, 0]] + noise
    left = build("vidcom2", 4, shape).reduce(given, 0, Context(shape))
    counts = [sum(f == frame for f, _ in kept(given, left, 0)) for frame in range(5)]
    assert counts[3] == max(counts) >= 7 and min(counts) >= 3


def test_options() -> None:
    with pytest.raises(UserError, match="temperature=0"):
        build("vidcom2", 4, tiny_backbone().shape, temperature=0)
    assert build("vidcom2", None, tiny_backbone(grid=12).shape).tokens == 36
