"""FastVID by loops over frames and tokens in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from sequences import layout, sequence
from test_evs import frames_of
from test_tower_scores import cls_pays, double, inputs_of, looked

from vtc.engine import compressing
from vtc.errors import UserError
from vtc.interface import Context, Tower
from vtc.methods import build
from vtc.methods.peaks import density
from vtc.testing import tiny_backbone

OPTIONS = [
    {},
    {"segments": 1, "threshold": -1.0},
    {"segments": 3, "threshold": -1.0, "every": 2, "context": 0.7, "own": 0.0},
    {"segments": 1, "threshold": 0.1, "every": 3, "context": 1.0, "own": 0.3},
    {"segments": 2, "context": 0.0},
]


def length(x) -> float:
    return math.sqrt(sum(float(v) ** 2 for v in x))


def cosine(a, b) -> float:
    return float(np.dot(a, b)) / length(a) / length(b)


def segments(frames: list[np.ndarray], least: int, threshold: float) -> list[list[int]]:
    like = [cosine(a.mean(0), b.mean(0)) for a, b in itertools.pairwise(frames)]
    smallest = sorted(range(len(like)), key=lambda t: like[t])[: least - 1]
    parts: list[list[int]] = [[]]
    for t in range(len(frames)):
        parts[-1].append(t)
        if t < len(like) and (t in smallest or like[t] < threshold):
            parts.append([])
    return parts


def dense_first(x: np.ndarray) -> list[int]:
    apart = [[length(a - b) / math.sqrt(x.shape[1]) for b in x] for a in x]
    rho = [math.exp(-sum(d**2 for d in sorted(row)[:4]) / min(4, len(x))) for row in apart]
    most = max(map(max, apart))
    delta = [min([d for j, d in enumerate(row) if rho[j] > rho[i]], default=most) for i, row in enumerate(apart)]
    return sorted(range(len(x)), key=lambda i: -rho[i] * delta[i])


def by_hand(hidden, features, attention, tokens: int, c: int, tau: float, d: float, p: int, beta: float):
    """Of each frame: token → what it becomes."""
    parts = segments(features, c, tau)
    few = int(tokens * d)
    salient = [min(tokens - few, len(x)) for x in hidden]
    dense = [0] * len(hidden)
    for part in parts:
        anchors = part[::-1][::p]
        whole, odd = divmod(few * len(part), len(anchors))
        for n, t in enumerate(anchors):
            dense[t] = min(whole + (n < odd), len(hidden[t]) - salient[t])
    over = min(tokens * len(hidden), sum(map(len, hidden))) - sum(salient) - sum(dense)
    extra = [0] * len(hidden)
    while over:  # a round for all that have room, the earlier ones first
        open_ = [t for t, x in enumerate(hidden) if salient[t] + dense[t] + extra[t] < len(x)]
        for t in open_[:over]:
            extra[t], over = extra[t] + 1, over - 1
    left: list[dict[int, np.ndarray]] = [{} for _ in hidden]
    for part in parts:
        rest = {}
        for t in part:
            order = sorted(range(len(hidden[t])), key=lambda i: -attention[t][i])
            stays = order[: salient[t] + extra[t]]
            left[t] |= {i: hidden[t][i] for i in stays}
            rest[t] = [i for i in range(len(hidden[t])) if i not in stays]
        pool = [hidden[t][i] for t in part for i in rest[t]]
        for t in part:
            if not dense[t]:
                continue
            targets = [rest[t][k] for k in dense_first(hidden[t][rest[t]])[: dense[t]]]
            groups: dict[int, list[np.ndarray]] = {i: [] for i in targets}
            for x in pool:
                groups[max(targets, key=lambda i: cosine(x, hidden[t][i]))].append(x)
            for i, group in groups.items():
                w = max(1 / (len(group) + 1), beta)
                mean = sum(group) / max(1, len(group)) if group else np.zeros_like(hidden[t][i])
                left[t][i] = w * hidden[t][i] + (1 - w) * mean
    return left


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("tokens", [1, 5, 8])
@pytest.mark.parametrize("frames", [6, 1, 9])
def test_equals_the_paper_by_loops(frames: int, tokens: int, options: dict) -> None:
    """A video and, beside it in the batch, one of three frames; what the tower saw is drawn."""
    backbone = tiny_backbone(grid=3)
    given = sequence([layout(*[9] * frames), layout(9, 9, 9)], seed=tokens, compact=True)
    method = build("fastvid", tokens, backbone.shape, **options)
    draw = torch.Generator().manual_seed(tokens)
    count, width = frames + 3, backbone.shape.vision.width
    features = torch.randn(count, 9, width, generator=draw)
    keys, queries = (torch.randn(count, 10, width, generator=draw) for _ in range(2))
    tower = Tower(
        features, {method.tower_layer: queries}, {method.tower_layer: keys}, heads=backbone.shape.vision.heads
    )
    out = method.reduce(given, 0, Context(backbone.shape, tower=tower))
    attention = [cls_pays(q, k, tower.heads).tolist() for q, k in zip(queries.double(), keys.double(), strict=True)]
    settings = (method.segments, method.threshold, method.context, method.every, method.own)
    for row, own in enumerate((slice(0, frames), slice(frames, count))):
        hidden = [np.asarray(x, dtype=np.float64) for x in frames_of(given, row)]
        seen = list(features[own].double().numpy())
        left = by_hand(hidden, seen, attention[own], tokens, *settings)
        expected = [x[i] for x in left for i in sorted(x)]
        got = out.hidden[row, out.mask[row] & out.visual[row]].double().numpy()
        assert len(got) == min(tokens, 9) * len(hidden)
        assert np.abs(got - np.stack(expected)).max() < 1e-4


def test_equal_tokens_are_one_peak() -> None:
    """Patches of one plain surface: one of them is chosen, and no second one before what is different."""
    plain, striped, lone = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    x = torch.stack([plain, plain, plain, plain, striped, striped, striped, striped, lone])
    chosen = density(x, 4)[0].argsort(descending=True, stable=True)[:3].tolist()
    assert sorted(chosen) == [0, 4, 8]


def test_it_meets_the_budget_on_every_kind_of_tower() -> None:
    """Tiles, packed windows, merged patches: each row has as many tokens as its frames have a budget for."""
    for family in ("llava_next", "qwen2.5", "internvl"):
        backbone = double(family)
        inputs = inputs_of(backbone, family)
        method = build("fastvid", 3, backbone.shape)
        seen, _ = looked(backbone, inputs, method.tower_layer)
        with compressing(backbone, method) as engine, torch.no_grad():
            backbone.model(**inputs, position_ids=backbone.positions(inputs))
            left = list(engine.report.tokens_out)
        assert len(seen) == 4 and left == [3, 6, 3]


@pytest.mark.parametrize("option", [{"segments": 0}, {"threshold": 2}, {"context": 1.5}, {"every": 0}, {"own": -0.1}])
def test_wrong_options_are_named(option: dict) -> None:
    with pytest.raises(UserError, match=f"method.{next(iter(option))}=.*: allowed"):
        build("fastvid", 4, tiny_backbone().shape, **option)
