"""FasterVLM against the attention weights of an eager tower."""

from __future__ import annotations

import pytest
from tower_reference import double, equals, every_case, look, rows

from vtc.budget import Budget
from vtc.errors import UserError
from vtc.methods import build
from vtc.methods.fastervlm import FasterVLM
from vtc.testing import tiny_backbone


@every_case
@pytest.mark.parametrize(("tokens", "layer"), [(1, None), (4, None), (7, -1), (8, 0)])
def test_keeps_what_cls_attends_to_most(seed: int, grid: int, images: tuple, tokens: int, layer: int | None) -> None:
    backbone = double(seed, grid)
    inputs = rows(backbone, images, seed)
    method = build("fastervlm", tokens, backbone.shape, tower_layer=layer)
    made = []
    for seen in look(backbone, inputs["pixel_values"], 1 if layer == -1 else 0):
        score = {j: float(seen.attention[:, 0, 1 + j].mean()) for j in range(grid * grid)}
        best = sorted(sorted(score, key=lambda j: -score[j])[:tokens])
        made.append(backbone.projector(seen.features[best]))
    equals(backbone, method, inputs, made)


def test_budgets_in_every_form() -> None:
    shape = tiny_backbone().shape
    assert build("fastervlm", None, shape).tokens == 4
    assert FasterVLM(Budget(ratio=0.5).resolve, shape).tokens == 8
    assert FasterVLM(Budget(compression=4).resolve, shape).tokens == 4
    assert FasterVLM(5, shape).layer_tokens() == [5] * 4
    with pytest.raises(UserError, match="fastervlm on .* offers 1 to 16"):
        build("fastervlm", 17, shape)
    with pytest.raises(UserError, match="method.tower_layer=2: this tower has 2 layers; allowed: -2 to 1"):
        build("fastervlm", 4, shape, tower_layer=2)
