"""SparseVLM: raters, the plan of each step and the clusters against loops in float64, and a whole step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sequences import layout, sequence

from vtc.errors import UserError
from vtc.interface import Context, TokenSequence
from vtc.methods import build
from vtc.methods.sparsevlm import density_peaks, raters
from vtc.testing import tiny_backbone


def prompt(tokens: TokenSequence) -> torch.Tensor:
    return tokens.mask & ~tokens.visual & (tokens.visual.cumsum(1) > 0)


@pytest.mark.parametrize("seed", range(4))
def test_raters_are_more_about_the_image_than_the_mean(seed: int) -> None:
    tokens = sequence([layout(9, 4, after=7), layout(12, after=3)], seed=seed)
    got = raters(tokens, prompt(tokens))
    for row in range(2):
        h = tokens.hidden[row].double().numpy()
        visual, words = tokens.visual[row].nonzero()[:, 0].tolist(), prompt(tokens)[row].nonzero()[:, 0].tolist()
        share = np.exp(h[visual] @ h[words].T)
        relevance = (share / share.sum(1, keepdims=True)).mean(0)
        expected = [w for w, r in zip(words, relevance, strict=True) if r > relevance.mean()]
        assert got[row].nonzero()[:, 0].tolist() == expected


def test_one_word_rates_alone() -> None:
    tokens = sequence([layout(5, after=1)])
    assert raters(tokens, prompt(tokens)).nonzero()[:, 1].tolist() == [7]


def peaks(points: np.ndarray, count: int) -> list[int]:
    """The place (by falling score) of the centre that each point belongs to."""
    n = len(points)
    d = np.linalg.norm(points[:, None] - points[None], axis=-1) / points.shape[1] ** 0.5
    density = [float(np.exp(-np.mean(np.sort(d[i])[:count] ** 2))) for i in range(n)]
    score = []
    for i in range(n):
        denser = [d[i, j] for j in range(n) if density[j] > density[i] or (density[j] == density[i] and j < i)]
        score.append(density[i] * (min(denser) if denser else d.max()))
    centres = sorted(range(n), key=lambda i: (-score[i], i))[:count]
    return [centres.index(i) if i in centres else int(np.argmin([d[i, c] for c in centres])) for i in range(n)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("sizes", "counts"), [([20, 11], [4, 2]), ([7, 7, 3], [3, 1, 3]), ([16], [16]), ([1], [1])])
def test_clusters_are_density_peaks(sizes: list[int], counts: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(len(sizes), 24, 5, generator=generator)
    real = torch.zeros(len(sizes), 24, dtype=torch.bool)
    for image, size in enumerate(sizes):  # the recycled ones lie anywhere among the others
        real[image, torch.randperm(24, generator=generator)[:size]] = True
    got = density_peaks(points, real, torch.tensor(counts)[:, None])
    for image, count in enumerate(counts):
        expected = peaks(points[image, real[image]].double().numpy(), count)
        assert got[image, real[image]].tolist() == expected and sorted(set(expected)) == list(range(count))
        assert (got[image, ~real[image]] == -1).all()


def test_equal_points_make_as_many_clusters() -> None:
    got = density_peaks(torch.ones(1, 8, 3), torch.ones(1, 8, dtype=torch.bool), torch.tensor([[3]]))
    assert got[0].tolist() == peaks(np.ones((8, 3)), 3) and sorted(set(got[0].tolist())) == [0, 1, 2]
    pairs = torch.tensor([0.0, 0, 5, 5, 9, 9]).view(1, 6, 1)  # equally dense: the earlier one of a pair is its centre
    got = density_peaks(pairs, torch.ones(1, 6, dtype=torch.bool), torch.tensor([[2]]))
    assert got[0].tolist() == peaks(pairs[0].double().numpy(), 2)


@pytest.mark.parametrize("recycle", [0, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("images", "budget"), [([[40, 9], [23]], 6), ([[64], [64]], 20), ([[30, 30]], 1)])
def test_a_step_keeps_merges_and_drops(images: list[list[int]], budget: int, seed: int, recycle: float) -> None:
    """One stage, straight to the budget, with scores given."""
    shape = tiny_backbone(depth=4, grid=8).shape
    tokens = sequence([layout(*row) for row in images], seed=seed)
    score = torch.rand(tokens.mask.shape, generator=torch.Generator().manual_seed(seed + 5))
    asked = []
    context = Context(shape, prompt=prompt, next_layer_attention=lambda t, queries: asked.append(queries) or score)
    method = build("sparsevlm", budget, shape, layers=[2], recycle=recycle)
    assert method.layers() == {0, 2}
    method.reduce(tokens, 0, context)
    left = method.reduce(tokens, 2, context)
    assert torch.equal(asked[0], raters(tokens, prompt(tokens)))
    for row, sizes in enumerate(images):
        expected = [(int(p), tokens.hidden[row, p]) for p in (tokens.mask & ~tokens.visual)[row].nonzero()[:, 0]]
        for image, size in enumerate(sizes):
            places = (tokens.visual[row] & (tokens.image[row] == image)).nonzero()[:, 0].tolist()
            ranked = sorted(places, key=lambda p: (-float(score[row, p]), p))
            goal = min(budget, size)
            merged = min(int(np.ceil(recycle * (size - goal) / 10)), goal // 2)
            kept = ranked[: goal - merged]
            again = sorted(
                ranked[goal - merged :][: max(merged, round(recycle * (size - goal + merged)))] if merged else []
            )
            expected += [(p, tokens.hidden[row, p]) for p in kept]
            groups = peaks(tokens.hidden[row, again].double().numpy(), merged) if merged else []
            for group in range(merged):
                members = [p for p, g in zip(again, groups, strict=True) if g == group]
                expected.append((members[0], tokens.hidden[row, members].mean(0)))
        expected.sort(key=lambda e: e[0])
        got = left.hidden[row, left.mask[row]]
        assert torch.allclose(got, torch.stack([h for _, h in expected]), atol=1e-5)
        assert int(left.visual[row].sum()) == sum(min(budget, s) for s in sizes)


def test_most_of_what_is_left_was_never_merged() -> None:
    """576 tokens to 115: one recycled token for ten, within the budget."""
    shape = tiny_backbone(depth=32, grid=24).shape
    method = build("sparsevlm", None, shape)
    assert method.tokens == 115
    assert method.layer_tokens() == [576] * 2 + [337] * 4 + [197] * 9 + [115] * 17
    assert method._plan(576, 1 / 3) == (337 - 8, 74, 8)


def test_bad_options() -> None:
    shape = tiny_backbone(depth=32).shape
    with pytest.raises(UserError, match="method.recycle=1.5"):
        build("sparsevlm", 5, shape, recycle=1.5)
    with pytest.raises(UserError, match="method.layers"):
        build("sparsevlm", 5, shape, layers=[6, 2])
