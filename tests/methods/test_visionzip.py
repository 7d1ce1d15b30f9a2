"""VisionZip, written out patch by patch from its section 3."""

from __future__ import annotations

import pytest
import torch
from tower_reference import double, equals, every_case, look, rows

from vtc.errors import UserError
from vtc.methods import build
from vtc.testing import tiny_backbone


def zipped(backbone, seen, dominant: int, few: int, merge: str):
    """[dominant + few, D] by loops over patches."""
    count, heads = len(seen.features), seen.attention.shape[0]
    score = [sum(float(seen.attention[h, 0, 1 + j]) for h in range(heads)) for j in range(count)]
    best = sorted(sorted(range(count), key=lambda j: -score[j])[:dominant])
    rest = [j for j in range(count) if j not in best]
    step = len(rest) // few if few else 1
    targets = [rest[i * step] for i in range(few)]
    groups: dict[int, list[int]] = {t: [] for t in targets}
    key = {j: torch.stack(seen.keys[1 + j].chunk(heads)).mean(0) for j in rest}
    for j in rest:
        if j not in groups and few:
            similar = [float(torch.cosine_similarity(key[j], key[t], dim=0)) for t in targets]
            groups[targets[similar.index(max(similar))]].append(j)
    merged = []
    for target, members in groups.items():
        own = seen.features[target]
        if merge == "mean":
            merged.append(torch.stack([own, *(seen.features[j] for j in members)]).mean(0))
        else:
            merged.append(own + (torch.stack([seen.features[j] for j in members]).mean(0) if members else 0))
    return backbone.projector(torch.stack([*(seen.features[j] for j in best), *merged]))


@every_case
@pytest.mark.parametrize(("tokens", "few"), [(1, 0), (3, 0), (4, 1), (8, 1)])
@pytest.mark.parametrize("merge", ["add", "mean"])
def test_equals_the_paper_by_loops(seed: int, grid: int, images: tuple, tokens: int, few: int, merge: str) -> None:
    backbone = double(seed, grid)
    inputs = rows(backbone, images, seed)
    made = [zipped(backbone, s, tokens - few, few, merge) for s in look(backbone, inputs["pixel_values"])]
    equals(backbone, build("visionzip", tokens, backbone.shape, merge=merge), inputs, made)


@pytest.mark.parametrize(("tokens", "few"), [(13, 2), (22, 3), (35, 5)])
def test_several_contextual_tokens(tokens: int, few: int) -> None:
    backbone = double(5, grid=6)
    inputs = rows(backbone, (1, 2, 0), 5)
    made = [zipped(backbone, s, tokens - few, few, "add") for s in look(backbone, inputs["pixel_values"], layer=1)]
    equals(backbone, build("visionzip", tokens, backbone.shape, tower_layer=-1), inputs, made)


def test_the_budget_splits_as_in_the_paper() -> None:
    share = build("visionzip", 4, tiny_backbone().shape).contextual_share
    assert [(t - round(t * share), round(t * share)) for t in (64, 128, 192)] == [
        (54, 10),
        (108, 20),
        (162, 30),
    ]


@every_case
@pytest.mark.parametrize(("share", "few"), [(0.0, 0), (0.5, 4), (0.9, 7)])
def test_the_split_can_be_chosen(seed: int, grid: int, images: tuple, share: float, few: int) -> None:
    backbone = double(seed, grid)
    inputs = rows(backbone, images, seed)
    made = [zipped(backbone, s, 8 - few, few, "add") for s in look(backbone, inputs["pixel_values"])]
    equals(backbone, build("visionzip", 8, backbone.shape, contextual_share=share), inputs, made)
    with pytest.raises(UserError, match=r"method.contextual_share=1.5: .*from 0 to 1"):
        build("visionzip", 8, backbone.shape, contextual_share=1.5)


def test_a_wrong_merge_is_told_what_there_is() -> None:
    with pytest.raises(UserError, match=r"method.merge=sum: .*add, mean"):
        build("visionzip", 4, tiny_backbone().shape, merge="sum")
