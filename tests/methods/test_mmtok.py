"""MMTok, written out from its definition of coverage: every set's own, and the difference that a token makes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tower_reference import double, equals, every_case, look, rows

from vtc.methods import build
from vtc.methods.mmtok import best_cover


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(x - max(row)) for x in row)
    return [math.exp(x - max(row)) / total for x in row]


def chosen(seen, visual, words, tokens: int, alpha: float, t: float, v: float) -> list[int]:
    def cosine(a, b) -> float:
        return float(torch.cosine_similarity(a, b, dim=0))

    n = len(visual)
    p = [softmax([cosine(word, x) / t for x in visual]) for word in words]
    q = [softmax([cosine(f, g) / v for g in seen.features]) for f in seen.features]

    def covered(members: list[int]) -> float:
        if not members:
            return 0.0
        text = sum(max(row[j] for j in members) for row in p) / max(1, len(words))
        return text + alpha * sum(max(row[j] for j in members) for row in q) / n

    kept: list[int] = []
    for _ in range(tokens):
        gain = {j: covered([*kept, j]) for j in range(n) if j not in kept}
        kept.append(max(gain, key=lambda j: gain[j]))
    return sorted(kept)


@every_case
@pytest.mark.parametrize(
    ("tokens", "options"),
    [
        (4, {}),
        (5, {"alpha": 3.0, "image_temperature": 0.05}),
    ],
)
def test_equals_the_paper_by_loops(seed: int, grid: int, images: tuple, tokens: int, options: dict) -> None:
    backbone = double(seed, grid)
    inputs = rows(backbone, images, seed)
    method = build("mmtok", tokens, backbone.shape, **options)
    made, each = [], iter(look(backbone, inputs["pixel_values"]))
    for row, count in enumerate(images):
        ids = inputs["input_ids"][row, inputs["attention_mask"][row].bool()]
        visual = ids == backbone.image_token_id
        words = backbone.decoder.embed_tokens(ids[~visual & (visual.cumsum(0) > 0)]).detach()
        for seen in itertools.islice(each, count):
            projected = backbone.projector(seen.features).detach()
            settings = (method.alpha, method.text_temperature, method.image_temperature)
            made.append(projected[chosen(seen, projected, words, tokens, *settings)])
    equals(backbone, method, inputs, made)


@pytest.mark.parametrize("seed", range(4))
def test_the_greedy_cover_is_as_good_as_it_must_be(seed: int) -> None:
    """Coverage is submodular: greedily found, a set covers 1 − 1/e of what the best one does, at least."""
    cover = torch.rand(2, 7, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 4
    for one, kept in zip(cover, best_cover(cover, 3), strict=True):
        assert kept.sum() == 3
        best = max(float(one[:, list(three)].amax(1).sum()) for three in itertools.combinations(range(8), 3))
        assert float(one[:, kept].amax(1).sum()) >= (1 - 1 / math.e) * best
