"""HoliTom by loops over frames and tokens in float64, its segments by trying them all."""

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
from vtc.interface import Context, TokenSequence, Tower
from vtc.methods import build
from vtc.methods.holitom import most_saving
from vtc.testing import tiny_backbone

SMALL = tiny_backbone(grid=3).shape
OPTIONS = [
    {},
    {"threshold": 0.3, "own": 0.0},
    {"threshold": 0.95, "retained": 1.0},
    {"threshold": -0.9, "own": 1.0, "retained": 3.7},
]


def length(x: np.ndarray) -> float:
    return float(np.linalg.norm(x))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b) / length(a) / length(b)


def still_places(repeats: list[list[bool]], begin: int, end: int) -> list[int]:
    """That repeat in all of the frames begin + 1 … end; repeats[t] is of frame t."""
    return [s for s in range(len(repeats[0])) if all(repeats[t][s] for t in range(begin + 1, end + 1))]


def segments_by_trying(repeats: list[list[bool]]) -> list[tuple[int, int]]:
    """First and last frame of each: of all 2^(F−1) ways to cut the one that saves most, of equals the one whose last
    segment is the shortest, then the one before …"""
    count, found = len(repeats), []
    saves = {(b, e): (e - b) * len(still_places(repeats, b, e)) for b in range(count) for e in range(b, count)}
    for cuts in itertools.product([False, True], repeat=count - 1):
        starts = [0, *(t + 1 for t, cut in enumerate(cuts) if cut)]
        way = list(zip(starts, [*(t - 1 for t in starts[1:]), count - 1], strict=True))
        found.append((sum(saves[segment] for segment in way), [b - e for b, e in way][::-1], way))
    return max(found, key=lambda way: way[:2])[2]


def repeating(frames: list[np.ndarray], tau: float) -> tuple[list[list[bool]], dict[tuple[int, int], float]]:
    most = max(map(len, frames))
    like = {}
    for t, i in itertools.product(range(1, len(frames)), range(most)):
        if i < min(len(frames[t]), len(frames[t - 1])):
            like[t, i] = cosine(frames[t][i], frames[t - 1][i])
    return [[like.get((t, i), -1) > tau for i in range(most)] for t in range(len(frames))], like


def density_peaks(x: list[np.ndarray], count: int, k: int) -> list[int]:
    apart = [[length(a - b) / math.sqrt(len(a)) for b in x] for a in x]
    rho = [math.exp(-sum(d**2 for d in sorted(row)[:k]) / min(k, len(x))) for row in apart]
    most = max(map(max, apart))
    delta = [
        min([d for j, d in enumerate(row) if (rho[j], -j) > (rho[i], -i)], default=most) for i, row in enumerate(apart)
    ]
    return sorted(sorted(range(len(x)), key=lambda i: -rho[i] * delta[i])[:count])


def before_the_llm(frames, attention, tokens: int, retained: float, tau: float, beta: float) -> list[np.ndarray]:
    """What is left of a video, in order."""
    first = min(9, max(tokens, round(tokens * retained)))
    goal = min(first * len(frames), sum(map(len, frames)))
    repeats, like = repeating(frames, tau)
    segments = segments_by_trying(repeats)
    still = {(b, e): still_places(repeats, b, e) if e > b else [] for b, e in segments}
    gone = sorted(((t, s) for (b, e), places in still.items() for t in range(b + 1, e + 1) for s in places))
    released: set[tuple[int, int]] = set()
    missing = goal - (sum(map(len, frames)) - len(gone))
    if missing > 0:
        released = set(sorted(gone, key=lambda at: like[at])[:missing])
    parts: list[tuple[int, list[int], list[np.ndarray], bool]] = []
    for (b, e), places in still.items():
        if places:
            means = []
            for s in places:
                members = [frames[t][s] for t in range(b, e + 1) if (t, s) not in released]
                means.append(sum(members) / len(members))
            parts.append((b, places, means, True))
        for t in range(b, e + 1):
            moves = [s for s in range(len(frames[t])) if s not in places or (t, s) in released]
            parts.append((t, moves, [frames[t][s] for s in moves], False))
    total, done = sum(len(places) for _, places, _, _ in parts), 0
    left: dict[tuple[int, int], np.ndarray] = {}
    for t, places, values, merged in parts:
        count = (done + len(places)) * goal // total - done * goal // total
        done += len(places)
        if not merged:
            for n in sorted(range(len(places)), key=lambda n: -attention[t][places[n]])[:count]:
                left[t, places[n]] = values[n]
        elif count:
            centres = density_peaks(values, count, min(7, count))
            groups: dict[int, list[np.ndarray]] = {c: [] for c in centres}
            for n, x in enumerate(values):
                if n not in centres:
                    groups[min(centres, key=lambda c: length(x - values[c]))].append(x)
            for c, group in groups.items():
                own = values[c]
                left[t, places[c]] = beta * own + (1 - beta) * sum(group) / len(group) if group else own
    assert len(left) == goal
    return [left[at] for at in sorted(left)]


def within_the_llm(video: list[np.ndarray], paid: list[float], count: int) -> list[np.ndarray]:
    best = sorted(range(len(video)), key=lambda i: -paid[i])[:count]
    left = {i: video[i].copy() for i in sorted(best)}
    for i, x in enumerate(video):
        if i not in best:
            at = max(left, key=lambda j: cosine(x, video[j]))
            left[at] = (left[at] + x) / 2
    return list(left.values())


def stirred(given: TokenSequence, seed: int) -> None:
    """Of frames that follow each other many places change little."""
    draw = torch.Generator().manual_seed(seed)
    for row in range(len(given.mask)):
        for f in range(1, int(given.image[row].max()) + 1):
            now, before = ((given.image[row] == g).nonzero()[:, 0] for g in (f, f - 1))
            both = min(len(now), len(before))
            for a, b in zip(now[:both], before[:both], strict=True):
                if float(torch.rand((), generator=draw)) < 0.7:
                    noise = 0.4 * torch.randn(given.hidden.shape[-1], generator=draw)
                    given.hidden[row, a] = given.hidden[row, b] + noise


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 4, 7])
@pytest.mark.parametrize("sizes", [[9] * 6, [9], [9] * 8, [4, 9, 9, 6, 9]], ids=str)
def test_equals_the_equations_by_loops(sizes: list[int], tokens: int, options: dict) -> None:
    """A video and, beside it in the batch, one of three frames; what tower and LLM pay is drawn."""
    given = sequence([layout(*sizes), layout(9, 9, 9)], seed=tokens, compact=True)
    stirred(given, tokens)
    method = build("holitom", tokens, SMALL, **options)
    draw = torch.Generator().manual_seed(tokens)
    count, width = len(sizes) + 3, SMALL.vision.width
    keys, queries = (torch.randn(count, 10, width, generator=draw) for _ in range(2))
    tower = Tower(torch.randn(count, 9, width, generator=draw), {method.tower_layer: queries},
                  {method.tower_layer: keys}, heads=SMALL.vision.heads)  # fmt: skip
    attention = [cls_pays(q, k, tower.heads).tolist() for q, k in zip(queries.double(), keys.double(), strict=True)]
    context = Context(SMALL, tower=tower)
    middle = method.reduce(given, 0, context)
    paid = torch.rand(middle.mask.shape, generator=draw)
    end = method.reduce(middle, method.layer, Context(SMALL, attention_rows={method.layer - 1: paid},
                                                      memo=context.memo))  # fmt: skip
    for row, own in enumerate((slice(0, len(sizes)), slice(len(sizes), count))):
        frames = [np.asarray(x, dtype=np.float64) for x in frames_of(given, row)]
        first = before_the_llm(frames, attention[own], tokens, method.retained, method.threshold, method.own)
        visual = middle.mask[row] & middle.visual[row]
        got = middle.hidden[row, visual].double().numpy()
        assert np.abs(got - np.stack(first)).max() < 1e-4
        last = within_the_llm(list(got), paid[row, visual].tolist(), tokens * len(frames))
        got = end.hidden[row, end.mask[row] & end.visual[row]].double().numpy()
        assert len(got) == min(tokens * len(frames), sum(map(len, frames)))
        assert np.abs(got - np.stack(last)).max() < 1e-4
        kept = end.position[0, row, end.visual[row]]
        assert set(kept.tolist()) <= set(middle.position[0, row, visual].tolist())


@pytest.mark.parametrize("seed", range(8))
def test_no_segments_save_more(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    repeats = torch.rand(8, 5, generator=draw) < 0.2 + 0.1 * seed
    segments = [(s.start, s.stop - 1) for s in most_saving(repeats)]
    assert segments == segments_by_trying([[False] * 5, *repeats.tolist()])


def test_a_still_video_becomes_one_frame() -> None:
    """Where nothing moves a single segment remains, and its first frame's places share the budget."""
    given = sequence([layout(9, 9, 9, 9)], compact=True)
    at = given.visual[0].nonzero()[:, 0].view(4, 9)
    given.hidden[0, at] = given.hidden[0, at[0]]
    tower = Tower(torch.zeros(4, 9, 4), {0: torch.zeros(4, 10, 4)}, {0: torch.zeros(4, 10, 4)}, heads=1)
    method = build("holitom", 1, SMALL, tower_layer=0)
    left = method.reduce(given, 0, Context(SMALL, tower=tower))
    assert left.visual.sum() == 8 and not left.image[0, left.visual[0]].any()


def test_it_meets_the_budget_on_every_kind_of_tower() -> None:
    """Tiles, packed windows, merged patches: each row has as many tokens as its frames have a budget for."""
    for family in ("llava_next", "qwen2.5", "internvl"):
        backbone = double(family)
        inputs = inputs_of(backbone, family)
        method = build("holitom", 3, backbone.shape, threshold=0.1)
        seen, _ = looked(backbone, inputs, method.tower_layer)
        with compressing(backbone, method) as engine, torch.no_grad():
            backbone.model(**inputs, position_ids=backbone.positions(inputs))
            left, layers = list(engine.report.tokens_out), engine.report.layers
        assert len(seen) == 4 and left == [3, 6, 3]
        assert layers[0] == [6, 12, 6] and layers[-1] == [3, 6, 3]


def test_the_authors_setting() -> None:
    """On LLaVA-OneVision-7B: 28 layers, 15 % before layer 18, half of that behind it."""
    method = build("holitom", None, tiny_backbone(depth=28, grid=14).shape)
    assert (method.layer, method.first, method.tokens) == (18, 30, 15)
    assert method.layer_tokens() == [30] * 18 + [15] * 10


@pytest.mark.parametrize("option", [{"threshold": 2}, {"retained": 0.5}, {"own": -0.1}])
def test_wrong_options_are_named(option: dict) -> None:
    with pytest.raises(UserError, match=f"method.{next(iter(option))}=.*: allowed"):
        build("holitom", 4, SMALL, **option)
