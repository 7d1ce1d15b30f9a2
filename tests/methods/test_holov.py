"""HoloV, crop by crop and token by token."""

from __future__ import annotations

import pytest
from tower_reference import double, equals, every_case, look, rows

from vtc.errors import UserError
from vtc.methods import build
from vtc.methods.holov import dealt
from vtc.testing import tiny_backbone


def chosen(seen, tokens: int, crops: int, alpha: float) -> list[int]:
    attention = [float(a) for a in seen.attention[:, 0, 1:].mean(0)]
    count = len(attention)
    crops = min(crops, count)
    members, first = [], 0
    for crop in range(crops):
        size = count // crops + (crop < count % crops)
        members.append(list(range(first, first + size)))
        first += size
    weights = []
    for crop in members:
        n = len(crop)
        if n == 1:
            weights.append(1e3 * attention[crop[0]])
            continue
        unit = seen.features[crop] / seen.features[crop].norm(dim=1, keepdim=True)
        likeness = [[float(unit[i] @ unit[j]) if i != j else 0.0 for j in range(n)] for i in range(n)]
        mean = [sum(row) / (n - 1) for row in likeness]
        variance = [sum((s - m) ** 2 for s in row) / (n - 1) for row, m in zip(likeness, mean, strict=True)]
        ratio = sum(1e3 * attention[i] for i in crop) / n / (sum(variance) / n + 1e-6)
        weights.append(sum(1e3 * attention[i] + alpha * v * ratio for i, v in zip(crop, variance, strict=True)) / n)
    shares = [int(tokens * w / (sum(weights) + 1e-6)) for w in weights]
    order = sorted(range(crops), key=lambda c: -weights[c])
    for crop in order[: tokens - sum(shares)]:
        shares[crop] += 1
    while over := sum(max(0, s - len(m)) for s, m in zip(shares, members, strict=True)):
        shares = [min(s, len(m)) for s, m in zip(shares, members, strict=True)]
        room = [c for c in order if shares[c] < len(members[c])]
        for n in range(over):  # one by one, the weightiest first
            shares[room[n % len(room)]] += 1
    kept = []
    for crop, share in zip(members, shares, strict=True):
        kept += sorted(crop, key=lambda i: -attention[i])[:share]
    return sorted(kept)


@every_case
@pytest.mark.parametrize(("tokens", "crops", "alpha"), [(5, 4, 0.09), (8, 16, 3.0)])
def test_equals_the_authors_code_by_loops(
    seed: int, grid: int, images: tuple, tokens: int, crops: int, alpha: float
) -> None:
    backbone = double(seed, grid, sharper=6.0)
    inputs = rows(backbone, images, seed)
    method = build("holov", tokens, backbone.shape, crops=crops, alpha=alpha)
    made = []
    for seen in look(backbone, inputs["pixel_values"]):
        made.append(backbone.projector(seen.features[chosen(seen, tokens, crops, alpha)]))
    equals(backbone, method, inputs, made)


def test_what_a_crop_cannot_hold_goes_to_the_others() -> None:
    assert dealt(8, [90.0, 5.0, 5.0], [3, 3, 3]) == [3, 3, 2]
    assert dealt(9, [90.0, 5.0, 5.0], [3, 3, 3]) == [3, 3, 3]
    assert dealt(4, [1.0, 2.0, 1.0], [3, 3, 3]) == [1, 2, 1] or sum(dealt(4, [1.0, 2.0, 1.0], [3, 3, 3])) == 4


@pytest.mark.parametrize("option", [{"crops": 0}, {"alpha": -1}])
def test_wrong_options_are_named(option: dict) -> None:
    with pytest.raises(UserError, match=f"method.{next(iter(option))}=.*: allowed"):
        build("holov", 4, tiny_backbone().shape, **option)
