"""CDPruner against determinants computed anew at every step, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sequences import layout, sequence

from vtc.interface import Context, TokenSequence
from vtc.methods import build
from vtc.methods.cdpruner import most_diverse
from vtc.testing import tiny_backbone


def greedy(kernel: np.ndarray, count: int) -> list[int]:
    """Each pick is the one with which the determinant is largest; what differs by rounding alone is equal."""

    def volume(picks: list[int]) -> float:
        return round(float(np.linalg.det(kernel[np.ix_(picks, picks)])), 14)

    picked: list[int] = []
    for _ in range(min(count, len(kernel))):
        others = [i for i in range(len(kernel)) if i not in picked]
        picked.append(max(others, key=lambda i: (volume([*picked, i]), -i)))
    return picked


def unit(x: torch.Tensor) -> np.ndarray:
    x = x.double().numpy()
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def prompt(tokens: TokenSequence) -> torch.Tensor:
    return tokens.mask & ~tokens.visual & (tokens.visual.cumsum(1) > 0)


@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("images", "count"), [([[20, 7], [13]], 6), ([[16], [16]], 4), ([[5, 9]], 8)])
def test_keeps_what_the_determinants_say(images: list[list[int]], count: int, seed: int, condition: bool) -> None:
    shape = tiny_backbone().shape
    tokens = sequence([layout(*row, after=2 + n) for n, row in enumerate(images)], width=24, seed=seed, compact=True)
    method = build("cdpruner", count, shape, condition=condition)
    left = method.reduce(tokens, 0, Context(shape, prompt=prompt))
    for row, sizes in enumerate(images):
        words = unit(tokens.hidden[row, prompt(tokens)[row]])
        expected = [i for i in range(tokens.mask.shape[1]) if tokens.mask[row, i] and not tokens.visual[row, i]]
        for image in range(len(sizes)):
            places = (tokens.visual[row] & (tokens.image[row] == image)).nonzero()[:, 0]
            v = unit(tokens.hidden[row, places])
            r = (v @ words.T).mean(1)
            r = (r - r.min() + 1e-6) / (r.max() - r.min())
            kernel = v @ v.T * (np.outer(r, r) if condition else 1)
            expected += [int(places[p]) for p in greedy(kernel, count)]
        assert left.origin[row, left.mask[row]].tolist() == sorted(expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_picks(seed: int) -> None:
    v = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(seed))
    kernel = v @ v.transpose(1, 2)
    rank = most_diverse(kernel, torch.ones(1, 12, dtype=torch.bool), 12)[0]
    assert rank.argsort(descending=True).tolist() == greedy(kernel[0].double().numpy(), 12)


def test_more_tokens_than_dimensions() -> None:
    """Beyond the rank of the kernel the determinant is 0 with any token: the earliest follow, and the count holds."""
    v = torch.nn.functional.normalize(torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    kernel, real = v @ v.transpose(1, 2), torch.arange(20) < torch.tensor([[20], [9]])
    rank = most_diverse(kernel, real, 10)
    for image, count in enumerate((10, 9)):
        picks = rank[image].argsort(descending=True)[:count].tolist()
        assert picks[:4] == greedy(kernel[image].double().numpy()[: real[image].sum(), : real[image].sum()], 4)
        assert picks[4:] == [i for i in range(20) if i not in picks[:4]][: count - 4]
        assert int((rank[image] > 0).sum()) == count


def test_the_question_has_a_say_only_where_asked_for() -> None:
    shape = tiny_backbone().shape
    tokens = sequence([layout(16), layout(16)], width=24, compact=True)
    tokens.hidden[1, :18] = tokens.hidden[0, :18]  # one image, two questions
    for condition in (True, False):
        method = build("cdpruner", 5, shape, condition=condition)
        left = method.reduce(tokens, 0, Context(shape, prompt=prompt))
        assert (left.origin[0].tolist() != left.origin[1].tolist()) == condition
        assert method.reads_prompt == condition


def test_default() -> None:
    assert build("cdpruner", None, tiny_backbone(grid=24).shape).tokens == 64
