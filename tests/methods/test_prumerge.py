"""PruMerge and PruMerge+, written out token by token from section 3."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tower_reference import double, equals, every_case, look, rows

from vtc.engine import compressing
from vtc.errors import UserError
from vtc.methods import build
from vtc.testing import tiny_backbone


def cls_row(seen) -> list[float]:
    scores = seen.queries[0] @ seen.keys.T / seen.keys.shape[1] ** 0.5
    return scores.softmax(0)[1:].tolist()


def adaptive(a: list[float], plus: bool) -> list[int]:
    count = len(a)
    low, high = np.percentile(a, 25), np.percentile(a, 75)
    kept = {j for j in range(count) if a[j] > high + 1.5 * (high - low)} | {int(np.argmax(a))}
    if plus:
        kept |= set(range(0, count, max(2, count // (3 * len(kept)))))
    return sorted(kept)


def exact(a: list[float], count: int, plus: bool) -> list[int]:
    top = -(-count // 4) if plus else count
    kept = sorted(range(len(a)), key=lambda j: -a[j])[:top]
    rest, more = sorted(set(range(len(a))) - set(kept)), count - top
    return sorted(kept + [rest[(2 * i + 1) * len(rest) // (2 * more)] for i in range(more)])


def merged(backbone, seen, kept: list[int], near: int, fuse: bool = True):
    a, made = cls_row(seen), []
    for i in kept:
        similar = {
            j: float(torch.cosine_similarity(seen.keys[1 + i], seen.keys[1 + j], dim=0))
            for j in range(len(a))
            if j != i
        }
        nearest = sorted(similar, key=lambda j: -similar[j])[:near]
        made.append(seen.features[i] + sum(a[j] * seen.features[j] for j in nearest))
    if fuse:
        made.append(sum(a[j] * seen.features[j] for j in range(len(a)) if j not in kept))
    return backbone.projector(torch.stack(made))


@every_case
@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize(("tokens", "near"), [(1, None), (2, 3), (6, None), (8, 40)])
def test_a_budget_equals_the_paper_by_loops(seed, grid, images, tokens: int, near: int | None, plus: bool) -> None:
    backbone = double(seed, grid)
    inputs = rows(backbone, images, seed)
    method = build("prumerge", tokens, backbone.shape, plus=plus, neighbours=near)
    count = max(1, round(grid * grid / 18)) if near is None else near
    made = []
    for seen in look(backbone, inputs["pixel_values"]):
        kept = exact(cls_row(seen), max(1, tokens - 1), plus)
        assert len(set(kept)) == max(1, tokens - 1)
        made.append(merged(backbone, seen, kept, count, fuse=tokens > 1))
    equals(backbone, method, inputs, made)


@every_case
@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("layer", [None, -1])
def test_without_a_budget_every_image_has_its_own_count(seed, grid, images, plus: bool, layer: int | None) -> None:
    backbone = double(seed, grid, sharper=8)
    inputs = rows(backbone, images, seed)
    method = build("prumerge", None, backbone.shape, plus=plus, tower_layer=layer)
    made = []
    for seen in look(backbone, inputs["pixel_values"], layer=1 if layer == -1 else 0):
        made.append(merged(backbone, seen, adaptive(cls_row(seen), plus), max(1, round(grid * grid / 18))))
    equals(backbone, method, inputs, made)
    with compressing(backbone, method) as engine:
        backbone.model(**inputs)
    assert sum(engine.report.tokens_out) == sum(len(m) for m in made)
    assert engine.report.kept == [[], [], []]  # each took others in: none is left as it was


def test_counts_do_differ() -> None:
    """Else the test above shows nothing."""
    backbone = double(2, 5, sharper=8)
    found = look(backbone, rows(backbone, (1, 1, 3), 2)["pixel_values"])
    assert len({len(adaptive(cls_row(s), False)) for s in found}) > 1


def test_adaptive_counts_generate() -> None:
    from vtc.testing.contracts import batch_equals_singles, cached_equals_uncached

    def make(backbone, tokens):
        return build("prumerge", None, backbone.shape)

    for contract in (batch_equals_singles, cached_equals_uncached):
        contract(double(2, 5, sharper=8), make, 5)


@pytest.mark.parametrize("option", [{"plus": 1}, {"neighbours": -1}, {"neighbours": 2.0}])
def test_wrong_options_are_named(option: dict) -> None:
    with pytest.raises(UserError, match=f"method.{next(iter(option))}=.*: allowed"):
        build("prumerge", 4, tiny_backbone().shape, **option)
