"""SCOPE, written out token by token from its definition of coverage and gain."""

from __future__ import annotations

import pytest
import torch
from tower_reference import double, equals, every_case, look, rows

from vtc.errors import UserError
from vtc.methods import build
from vtc.testing import tiny_backbone


def chosen(seen, tokens: int, alpha: float) -> list[int]:
    count = len(seen.features)

    def cosine(u: int, v: int) -> float:
        return float(torch.cosine_similarity(seen.features[u], seen.features[v], dim=0))

    def covered(members: list[int]) -> float:
        """How much of the image a set covers; the gain of a patch is the difference that it makes."""
        return sum(max([0.0, *(cosine(u, s) for s in members)]) for u in range(count))

    kept: list[int] = []
    for _ in range(tokens):
        score = {
            v: (covered([*kept, v]) - covered(kept)) * float(seen.attention[:, 0, 1 + v].mean()) ** alpha
            for v in range(count)
            if v not in kept
        }
        kept.append(max(score, key=lambda v: score[v]))
    return sorted(kept)


@every_case
@pytest.mark.parametrize(("tokens", "alpha", "layer"), [(1, 1.0, None), (4, 1.0, None), (5, 0.0, None), (3, 2.0, -1)])
def test_equals_the_paper_by_loops(
    seed: int, grid: int, images: tuple, tokens: int, alpha: float, layer: int | None
) -> None:
    backbone = double(seed, grid, sharper=4.0)
    inputs = rows(backbone, images, seed)
    method = build("scope", tokens, backbone.shape, alpha=alpha, tower_layer=layer)
    made = []
    for seen in look(backbone, inputs["pixel_values"], 1 if layer == -1 else 0):
        made.append(backbone.projector(seen.features[chosen(seen, tokens, alpha)]))
    equals(backbone, method, inputs, made)


@pytest.mark.parametrize("alpha", [-0.5, True, "much"])
def test_wrong_options_are_named(alpha: object) -> None:
    with pytest.raises(UserError, match="method.alpha=.*: allowed"):
        build("scope", 4, tiny_backbone().shape, alpha=alpha)
