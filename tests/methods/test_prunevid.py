"""PruneVid by loops over frames and tokens in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from reference import attention_weights, embedded
from sequences import layout, sequence
from test_evs import frames_of
from test_holitom import SMALL, cosine, density_peaks, length, stirred
from test_tower_scores import double, inputs_of

from vtc.engine import compressing
from vtc.errors import UserError
from vtc.interface import Context
from vtc.methods import build
from vtc.methods.prunevid import stretches
from vtc.testing import batch, tiny_backbone

OPTIONS = [
    {},
    {"threshold": 0.4, "segments": 0.4},
    {"threshold": 0.95, "retained": 1.0, "segments": 1.0},
    {"threshold": -1.0, "segments": 0.0, "retained": 4.0},
]


def clusters(x: list[np.ndarray], count: int) -> list[int]:
    """Which of the centres each of x belongs to."""
    centres = density_peaks(x, count, 7)
    own = {c: n for n, c in enumerate(centres)}
    return [own[i] if i in own else min(range(count), key=lambda n: length(v - x[centres[n]])) for i, v in enumerate(x)]


def scenes_of(label: list[int]) -> list[list[int]]:
    """As the authors' code refines clusters of frames, frame by frame."""
    frames = list(range(len(label)))
    pieces = [[0]]
    for t in frames[1:]:
        if label[t] == label[t - 1]:
            pieces[-1].append(t)
        else:
            pieces.append([t])
    refined: list[int | None] = [None] * len(label)
    for piece in pieces:
        most = max(len(p) for p in pieces if label[p[0]] == label[piece[0]])
        if most > 1 and len(piece) == most:
            for t in piece:
                refined[t] = label[t]
    while None in refined:
        a = b = refined.index(None)
        while b < len(label) and refined[b] is None:
            b += 1
        before = behind = 0
        while a - before > 0 and refined[a - before - 1] == refined[a - 1]:
            before += 1
        while b < len(label) and b + behind < len(label) and refined[b + behind] == refined[b]:
            behind += 1
        new = refined[b] if behind > before else refined[a - 1] if before else 0
        refined[a:b] = [new] * (b - a)
    out = [[0]]
    for t in frames[1:]:
        if refined[t] == refined[t - 1]:
            out[-1].append(t)
        else:
            out.append([t])
    return out


def alike(frames, scene: list[int], s: int) -> dict[int, float]:
    """Of each frame of a scene the mean cosine of its token at place s and those of the others."""
    return {t: sum(cosine(frames[t][s], frames[u][s]) for u in scene if u != t) / (len(scene) - 1) for t in scene}


def parts_of(frames, goal: int, tau: float, gamma: float) -> list[tuple[int, list[int], list[np.ndarray]]]:
    """Frame, places and values of the tokens that are clustered together."""
    whole = [x.mean(0) for x in frames]
    scenes = scenes_of(clusters(whole, max(1, int(gamma * len(frames)))))
    static: list[list[int]] = []
    gone: dict[tuple[int, int], float] = {}
    for scene in scenes:
        static.append([])
        for s in range(min(len(frames[t]) for t in scene)):
            if len(scene) > 1:
                like = alike(frames, scene, s)
                if sum(like.values()) / len(scene) > tau:
                    static[-1].append(s)
                    gone |= {(t, s): like[t] for t in scene[1:]}
    missing = max(0, goal - (sum(map(len, frames)) - len(gone)))
    released = sorted(sorted(gone), key=lambda at: gone[at])[:missing]
    parts = []
    for scene, places in zip(scenes, static, strict=True):
        if places:
            members = [[frames[t][s] for t in scene if (t, s) not in released] for s in places]
            parts.append((scene[0], places, [sum(m) / len(m) for m in members]))
        for t in scene:
            moves = [s for s in range(len(frames[t])) if s not in places or (t, s) in released]
            parts.append((t, moves, [frames[t][s] for s in moves]))
    return parts


def shared(sizes: list[int], goal: int) -> list[int]:
    ends = list(itertools.accumulate(sizes, initial=0))
    return [b * goal // ends[-1] - a * goal // ends[-1] for a, b in itertools.pairwise(ends)]


def before_the_llm(frames, first: int, tau: float, gamma: float) -> tuple[list[np.ndarray], list[int]]:
    """What is left of a video, in order, and which part each is of."""
    goal = min(first * len(frames), sum(map(len, frames)))
    parts = parts_of(frames, goal, tau, gamma)
    left: dict[tuple[int, int], tuple[np.ndarray, int]] = {}
    for n, count in enumerate(shared([len(places) for _, places, _ in parts], goal)):
        t, places, values = parts[n]
        if count:
            label = clusters(values, count)
            for c, centre in enumerate(density_peaks(values, count, 7)):
                members = [v for v, own in zip(values, label, strict=True) if own == c]
                left[t, places[centre]] = sum(members) / len(members), n
    assert len(left) == goal
    return [left[at][0] for at in sorted(left)], [left[at][1] for at in sorted(left)]


def chosen(score: list[float], part: list[int], goal: int) -> list[int]:
    """Of tokens of these parts, those that the question keeps."""
    numbers = list(range(max(part) + 1))
    out: list[int] = []
    for n, count in zip(numbers, shared([part.count(n) for n in numbers], goal), strict=True):
        members = [i for i, own in enumerate(part) if own == n]
        out += sorted(members, key=lambda i: -score[i])[:count]
    return sorted(out)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 4, 7])
@pytest.mark.parametrize("sizes", [[9] * 6, [9], [9] * 12, [4, 9, 9, 6, 9]], ids=str)
def test_equals_the_equations_by_loops(sizes: list[int], tokens: int, options: dict) -> None:
    """A video and, beside it in the batch, one of three frames; what the LLM pays is drawn."""
    given = sequence([layout(*sizes), layout(9, 9, 9)], seed=tokens, compact=True)
    stirred(given, tokens)
    method = build("prunevid", tokens, SMALL, **options)
    context = Context(SMALL)
    middle = method.reduce(given, 0, context)
    paid = torch.rand(middle.mask.shape, generator=torch.Generator().manual_seed(tokens))
    prompt = middle.mask & ~middle.visual
    asked = []

    def pays(t, queries, greatest):
        asked.append((torch.equal(queries, prompt), greatest))
        return paid

    context.prompt, context.next_layer_attention = lambda t: prompt, pays
    end = method.reduce(middle, method.layer, context)
    for row in range(2):
        frames = [np.asarray(x, dtype=np.float64) for x in frames_of(given, row)]
        settings = (min(9, max(tokens, round(tokens * method.retained))), method.threshold, method.segments)
        first, part = before_the_llm(frames, *settings)
        visual = middle.mask[row] & middle.visual[row]
        got = middle.hidden[row, visual]
        assert np.abs(got.double().numpy() - np.stack(first)).max() < 1e-4
        goal = min(tokens * len(frames), sum(map(len, frames)))
        want = got[chosen(paid[row, visual].tolist(), part, goal)]
        assert torch.equal(end.hidden[row, end.mask[row] & end.visual[row]], want) and len(want) == goal
    assert asked in ([], [(True, True)])


@pytest.mark.parametrize("seed", range(40))
def test_scenes_are_stretches_of_frames(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    frames = int(torch.randint(1, 20, (), generator=draw))
    label = torch.randint(0, 1 + seed % 4, (frames,), generator=draw)
    label = torch.where(torch.rand(frames, generator=draw) < 0.5, label.roll(1), label).tolist()
    assert [list(s) for s in stretches(label)] == scenes_of(label)


def test_a_scene_cut_is_found() -> None:
    """Two pictures, each shown for some frames: two scenes, of which everything merges into the first frames."""
    given = sequence([layout(*[9] * 8)], compact=True)
    at = given.visual[0].nonzero()[:, 0].view(8, 9)
    for t in range(8):
        given.hidden[0, at[t]] = given.hidden[0, at[0 if t < 3 else 3]]
    left = build("prunevid", 1, SMALL, retained=2).reduce(given, 0, Context(SMALL))
    assert left.image[0, left.visual[0]].tolist() == [0] * 8 + [3] * 8
    apart = torch.cdist(left.hidden[0, left.visual[0]], given.hidden[0, at.flatten()]).amin(1)
    assert (apart > 0.1).sum() == 2  # of 9 places in each scene 8 are left: one of these is the mean of two


@torch.no_grad()
def test_the_llm_keeps_what_any_word_and_any_head_attends_to() -> None:
    """Of a single picture whose tokens all reach layer K: those with the greatest weight that eager attention has."""
    backbone = tiny_backbone()
    inputs = batch(backbone)
    method = build("prunevid", 5, backbone.shape, retained=100, layer=2, layer_scale="none")
    with compressing(backbone, method) as engine:
        position = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        backbone.model(**inputs, position_ids=position)
        kept = engine.report.kept
    for row in range(len(inputs["input_ids"])):
        real = inputs["attention_mask"][row].bool()
        ids = inputs["input_ids"][row, real]
        image = ids == backbone.image_token_id
        x = embedded(backbone, ids, inputs["pixel_values"][row : row + 1])
        weights = attention_weights(backbone, x, 2)[:, int(image.nonzero()[-1]) + 1 :].amax((0, 1))
        best = sorted(image.nonzero()[:, 0].tolist(), key=lambda i: -float(weights[i]))[:5]
        start = int(real.long().argmax())
        assert kept[row] == sorted(start + i for i in best)


def test_it_meets_the_budget_on_every_kind_of_tower() -> None:
    for family in ("llava_next", "qwen2.5", "internvl"):
        backbone = double(family)
        inputs = inputs_of(backbone, family)
        method = build("prunevid", 2, backbone.shape, threshold=0.1)
        with compressing(backbone, method) as engine, torch.no_grad():
            backbone.model(**inputs, position_ids=backbone.positions(inputs))
            left, layers = list(engine.report.tokens_out), engine.report.layers
        assert left == [2, 4, 2] and layers[0] == [5, 10, 5] and layers[-1] == [2, 4, 2]


def test_the_authors_setting() -> None:
    """On PLLaVA-7B's 144 tokens a frame and 32 layers: the tenth layer, 40 % of what was left before it."""
    method = build("prunevid", None, tiny_backbone(depth=32, grid=12).shape)
    assert (method.layer, method.first, method.tokens) == (10, 58, 23)
    assert method.layer_tokens() == [58] * 10 + [23] * 22


@pytest.mark.parametrize("option", [{"threshold": 2}, {"retained": 0.5}, {"segments": 1.5}])
def test_wrong_options_are_named(option: dict) -> None:
    with pytest.raises(UserError, match=f"method.{next(iter(option))}=.*: allowed"):
        build("prunevid", 4, SMALL, **option)
