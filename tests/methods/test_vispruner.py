"""VisPruner, written out token by token from its section 4.2."""

from __future__ import annotations

import pytest
import torch
from tower_reference import double, equals, every_case, look, rows

from vtc.errors import UserError
from vtc.methods import build
from vtc.testing import tiny_backbone


def chosen(seen, tokens: int, important: float, remove: int) -> list[int]:
    count = len(seen.features)
    score = [float(seen.attention[:, 0, 1 + j].mean()) for j in range(count)]
    ranked = sorted(range(count), key=lambda j: -score[j])
    kept, left = ranked[: int(tokens * important)], ranked[int(tokens * important) :]
    wanted = tokens - len(kept)
    while wanted and len(left) > wanted:
        a, b = left[::2], left[1::2]

        def nearest(j: int, b: list[int] = b) -> float:
            return max(float(torch.cosine_similarity(seen.features[j], seen.features[o], dim=0)) for o in b)

        a = sorted(a, key=lambda j: -nearest(j))
        left = a[min(remove, len(left) - wanted, len(a)) :] + b
    return sorted(kept + (left if wanted else []))


@every_case
@pytest.mark.parametrize(
    ("tokens", "important", "remove"), [(1, 0.5, 8), (4, 0.5, 8), (5, 0.5, 3), (6, 0.0, 2), (7, 1.0, 8), (8, 0.3, 1)]
)
def test_equals_the_paper_by_loops(
    seed: int, grid: int, images: tuple, tokens: int, important: float, remove: int
) -> None:
    backbone = double(seed, grid)
    inputs = rows(backbone, images, seed)
    method = build("vispruner", tokens, backbone.shape, important=important, remove=remove)
    made = []
    for seen in look(backbone, inputs["pixel_values"]):
        made.append(backbone.projector(seen.features[chosen(seen, tokens, important, remove)]))
        assert len(made[-1]) == tokens
    equals(backbone, method, inputs, made)


@pytest.mark.parametrize("option", [{"important": 1.1}, {"important": True}, {"remove": 0}, {"remove": 2.5}])
def test_wrong_options_are_named(option: dict) -> None:
    with pytest.raises(UserError, match=f"method.{next(iter(option))}=.*: allowed"):
        build("vispruner", 4, tiny_backbone().shape, **option)
