"""PruneSID, written out patch by patch, and budgets that are a mean."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch
from tower_reference import Seen, double, equals, every_case, look, rows

from vtc.budget import Budget
from vtc.engine import Complexities, compressing, spread_over
from vtc.errors import UserError
from vtc.interface import Context, TokenPruner, TokenSequence, Tower, layer_option
from vtc.interface.spread import scale_of, spread
from vtc.methods import build, make
from vtc.testing import batch, tiny_backbone
from vtc.testing.models import collate
from vtc.testing.models import rows as drawn_rows
from vtc.testing.tiny_qwen import tiny_qwen2_vl


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def alike(features: torch.Tensor) -> float:
    """ρ: the mean over pairs."""
    pairs = list(itertools.combinations(range(len(features)), 2))
    return sum(cosine(features[i], features[j]) for i, j in pairs) / len(pairs)


def loadings(features: torch.Tensor, count: int) -> np.ndarray:
    """[T, K]: by the singular vectors of the centred matrix whose columns are the patches."""
    matrix = 1 / (1 + np.exp(-features.T.numpy()))
    matrix = matrix - matrix.mean(0, keepdims=True)
    return np.abs(np.linalg.svd(matrix, full_matrices=False)[2][:count].T)


def dealt(left: list[int], sizes: list[int], count: int) -> list[int]:
    """Tokens of each group, one rule after the other."""
    cap = [min(size, alive, 5 * math.ceil(count / 64)) for size, alive in zip(sizes, left, strict=True)]
    while sum(cap) < count:
        cap = [min(size, limit + 1) for size, limit in zip(sizes, cap, strict=True)]
    own = [1 if size else 0 for size in sizes]
    more, total, before = count - sum(own), sum(left), 0
    for k in range(len(left)):
        until = round(more * sum(left[: k + 1]) / total)
        own[k] = min(cap[k], own[k] + until - before)
        before = until
    by_size = sorted(range(len(left)), key=lambda k: (-left[k], k))
    for k in by_size:
        while own[k] < cap[k] and sum(own) < count:
            own[k] += 1
    return own


def chosen(seen, count: int, cls: bool = True) -> list[int]:
    """The patches that are kept, in raster order."""
    features, total = seen.features, len(seen.features)
    v = loadings(features, max(1, count // 4))
    group = [int(np.argmax(v[j])) for j in range(total)]
    score = seen.attention[:, 0, 1:].mean(0).tolist() if cls else [float(v[j].max()) for j in range(total)]
    threshold = 18 * count / total * alike(features)
    queues = []
    for k in range(v.shape[1]):
        waiting = sorted((j for j in range(total) if group[j] == k), key=lambda j: -score[j])
        alive, gone = [], []
        while waiting:
            best = waiting.pop(0)
            alive.append(best)
            out = [j for j in waiting if cosine(features[best], features[j]) > threshold]
            gone += out
            waiting = [j for j in waiting if j not in out]
        queues.append((alive, sorted(gone, key=lambda j: -score[j])))
    counts = dealt([len(a) for a, _ in queues], [len(a) + len(g) for a, g in queues], count)
    return sorted(j for (a, g), n in zip(queues, counts, strict=True) for j in (a + g)[:n])


@every_case
@pytest.mark.parametrize("tokens", [1, 2, 5, 7, 8])
def test_equals_the_paper_by_loops(seed, grid, images, tokens: int) -> None:
    backbone = double(seed, grid, sharper=8)
    inputs = rows(backbone, images, seed)
    seen = look(backbone, inputs["pixel_values"])
    kept = [chosen(one, tokens) for one in seen]
    assert all(len(one) == tokens for one in kept)
    made = [backbone.projector(one.features[places]) for one, places in zip(seen, kept, strict=True)]
    equals(backbone, build("prunesid", tokens, backbone.shape), inputs, made)


def apart(seed: int, patches: int, common: float) -> tuple[Tower, list]:
    """Two pictures of random patches, as alike as they have in `common`, and the same as `look` would give them."""
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(2, patches, 24, generator=draw) + common * torch.randn(2, 1, 24, generator=draw)
    queries, keys = torch.randn(2, 2, 1 + patches, 24, generator=draw)
    seen = []
    for picture in range(2):
        rows = []
        for q, k in zip(queries[picture].split(12, 1), keys[picture].split(12, 1), strict=True):  # two heads
            rows.append((q.double() @ k.double().T / 12**0.5).softmax(1))
        seen.append(Seen(torch.stack(rows), queries[picture], keys[picture], features[picture].double()))
    return Tower(features, {0: queries}, {0: keys}, heads=2), seen


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("common", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("tokens", [1, 3, 4, 8, 13, 20, 35])
def test_equals_the_paper_where_patches_differ(tokens: int, common: float, seed: int) -> None:
    tower, seen = apart(seed, 36, common)
    kept = build("prunesid", 5, tiny_backbone().shape).condense(tower, tokens).kept
    assert [row.nonzero()[:, 0].tolist() for row in kept] == [chosen(one, tokens) for one in seen]


def test_the_suppression_and_the_groups_decide() -> None:
    """Else the tests above show nothing of them: what is kept is neither what the score alone nor the groups keep."""
    alone = grouped = 0
    for one in (one for seed in range(4) for one in apart(seed, 36, 0.2)[1]):
        score, v = one.attention[:, 0, 1:].mean(0).tolist(), loadings(one.features, 2)
        by_score = sorted(range(36), key=lambda j: -score[j])
        sizes = [int((v.argmax(1) == k).sum()) for k in range(2)]
        members = [[j for j in by_score if v[j].argmax() == k] for k in range(2)]
        groups = sorted(j for m, n in zip(members, dealt(sizes, sizes, 8), strict=True) for j in m[:n])
        alone += groups != sorted(by_score[:8])
        grouped += chosen(one, 8) != groups
    assert alone > 2 and grouped > 2


def test_a_tower_without_cls_scores_by_the_component() -> None:
    backbone = tiny_backbone(tower="siglip", grid=5)
    backbone.model.double()
    inputs = rows(backbone, (1, 0, 2))
    with torch.no_grad():
        features = backbone.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2]
        expected = []
        for own in features:
            seen = type("Seen", (), {"features": own})
            expected.append(chosen(seen, 6, cls=False))
    with torch.no_grad(), compressing(backbone, build("prunesid", 6, backbone.shape)) as engine:
        backbone.model(**inputs)
        first = [int(backbone.visual(ids).long().argmax()) for ids in inputs["input_ids"]]
        kept = engine.report.kept
    left = iter(expected)
    for row, count in enumerate((1, 0, 2)):
        want = [first[row] + 25 * n + j for n in range(count) for j in next(left)]
        assert kept[row] == want


# A budget that is a mean ---------------------------------------------------------------------------------------------


def brute(complexity: list[float], sizes: list[int], weights: list[float], limit: float) -> list[int]:
    """Tokens given one by one to whoever's scale comes next, alike ones together, as long as they fit."""
    counts = [1] * len(sizes)
    while True:
        waiting = {i: (counts[i] + 1) / complexity[i] for i in range(len(sizes)) if counts[i] < sizes[i]}
        if not waiting:
            return counts
        scale = min(waiting.values())
        more = [n + (i in waiting and waiting[i] <= scale * (1 + 1e-12)) for i, n in enumerate(counts)]
        if sum(w * n for w, n in zip(weights, more, strict=True)) > limit + 1e-9:
            return counts
        counts = more


@pytest.mark.parametrize("seed", range(30))
def test_the_scale_gives_as_much_as_the_mean_allows(seed: int) -> None:
    draw = random.Random(seed)
    count = draw.randint(1, 40)
    complexity = [draw.uniform(0.05, 1.0) for _ in range(count)]
    complexity = [draw.choice(complexity[: 1 + count // 3]) for _ in complexity] if seed % 3 == 0 else complexity
    sizes = [draw.randint(1, 60) for _ in range(count)] if seed % 2 else [36] * count
    weights = [1 / draw.choice((1, 2, 3)) for _ in range(count)] if seed % 5 == 0 else [1.0] * count
    tokens = draw.randint(1, 30)
    scale = scale_of(complexity, sizes, tokens, weights)
    given = spread(torch.tensor(complexity, dtype=torch.float64), torch.tensor(sizes), scale).tolist()
    assert given == brute(complexity, sizes, weights, tokens * sum(weights))
    assert sum(w * n for w, n in zip(weights, given, strict=True)) <= tokens * sum(weights) + 1e-9
    for noise in (1 - 1e-7, 1 + 1e-7):  # as of another batch
        moved = torch.tensor(complexity, dtype=torch.float64) * noise
        assert spread(moved, torch.tensor(sizes), scale).tolist() == given


def test_what_rounding_tells_apart_gains_its_tokens_together() -> None:
    """Else one picture that is asked about twice, in two batches, would have two numbers of tokens."""
    complexity = [0.3, 0.7, 0.3 * (1 + 3e-8), 0.3 * (1 - 3e-8)]
    for tokens in range(1, 40):
        given = spread(
            torch.tensor(complexity, dtype=torch.float64), torch.full((4,), 60), scale_of(complexity, [60] * 4, tokens)
        )
        assert given[0] == given[2] == given[3] and 4 * tokens - 3 < int(given.sum()) <= 4 * tokens


def test_different_images_lack_less_than_a_token_together() -> None:
    draw = random.Random(7)
    complexity = [draw.uniform(0.2, 0.9) for _ in range(1000)]
    given = spread(torch.tensor(complexity), torch.full((1000,), 576), scale_of(complexity, [576] * 1000, 64))
    assert int(given.sum()) in (63_999, 64_000)


def test_a_complexity_is_a_number_above_0() -> None:
    for wrong in ([0.0, 1.0], [math.nan], [-1.0], [math.inf], []):
        with pytest.raises(ValueError, match="a number above 0"):
            scale_of(wrong, [4] * len(wrong), 2)


def test_complexities_are_one_minus_the_mean_cosine() -> None:
    backbone = double(2, 5)
    inputs = rows(backbone, (1, 2, 0), 2)
    seen = Complexities()
    seen.add(backbone, build("prunesid", 6, backbone.shape), inputs)
    expected = [1 - alike(one.features) for one in look(backbone, inputs["pixel_values"])]
    assert seen.complexity == pytest.approx(expected, abs=1e-6) and seen.sizes == [25] * 3
    assert seen.weights == [1.0, 0.5, 0.5]


def test_text_alone_has_no_complexity() -> None:
    backbone = double(2, 5)
    seen = Complexities()
    seen.add(backbone, build("prunesid", 6, backbone.shape), batch(backbone, images=(0, 0, 0)))
    assert seen.scale(6) is None


@pytest.mark.parametrize("seed", [1, 2])
def test_under_a_mean_each_image_is_what_its_own_budget_makes_it(seed: int) -> None:
    backbone = double(seed, 5, sharper=8)
    inputs = rows(backbone, (2, 1, 3), seed)
    method, seen = build("prunesid", 7, backbone.shape), Complexities()
    seen.add(backbone, method, inputs)
    shapes = look(backbone, inputs["pixel_values"])
    complexity = [(1 - alike(one.features)) ** 6 for one in shapes]  # random towers make all images alike
    method.rate_images = lambda tower, own=method.rate_images: own(tower) ** 6  # type: ignore[method-assign]
    method.scale = scale_of(complexity, [25] * 6, 7)
    given = brute(complexity, [25] * 6, [1.0] * 6, 42)
    assert len(set(given)) > 1 and 42 - sum(given) < 1
    made = [backbone.projector(one.features[chosen(one, n)]) for one, n in zip(shapes, given, strict=True)]
    equals(backbone, method, inputs, made)
    method.scale = None
    made = [backbone.projector(one.features[chosen(one, 7)]) for one in shapes]
    equals(backbone, method, inputs, made)


def test_images_of_ones_own_have_the_mean() -> None:
    from PIL import Image

    backbone = tiny_backbone(grid=5)
    side = backbone.shape.vision.image_size
    draw = np.random.default_rng(0)
    images = [Image.fromarray(draw.integers(0, high, (side, side, 3), dtype=np.uint8)) for high in (2, 9, 60, 256)]
    method = build("prunesid", 7, backbone.shape)
    spread_over(backbone, method, images, rows=3)
    with torch.no_grad(), compressing(backbone, method) as engine:
        backbone.model(**backbone.inputs(["one"] * 4, [[image] for image in images]))
        left = engine.report.tokens_out
    assert sum(left) in (27, 28)
    with pytest.raises(UserError, match="method=fastv: a mean over images needs a method that says"):
        spread_over(backbone, build("fastv", 4, backbone.shape), images)
    with pytest.raises(UserError, match="method=prunesid: a mean over images needs a budget to spread, and images"):
        spread_over(backbone, method, [])


class Loud(TokenPruner):
    """A method of one's own: the loudest tokens, and more of them of a louder image."""

    name = "loud"
    about = "loud"
    spreads = True
    layer: int = layer_option(0, "before this decoder layer")

    def complexity(self, tokens: TokenSequence, context: Context) -> torch.Tensor:
        _, real = tokens.images
        return tokens.visual_hidden().norm(dim=2).masked_fill(~real, 0).sum(1) ** 16

    def score(self, tokens: TokenSequence, context: Context) -> torch.Tensor:
        return tokens.hidden.norm(dim=2)


def test_a_token_pruner_of_ones_own_spreads_too() -> None:
    backbone = tiny_qwen2_vl()
    inputs = collate(backbone, drawn_rows(backbone, images=(1, 2, 0)))
    method, seen = Loud(4, backbone.shape).build().eval(), Complexities()
    seen.add(backbone, method, inputs)
    with torch.no_grad():
        pictures = [f.norm(dim=1).tolist() for f in backbone.image_features(dict(inputs))]
    assert seen.complexity == pytest.approx([sum(own) ** 16 for own in pictures], rel=1e-4)
    assert seen.weights == [1.0, 0.5, 0.5]
    method.scale = seen.scale(4)
    given = brute(seen.complexity, seen.sizes, seen.weights, 4 * 2)
    assert len(set(given)) > 1
    with torch.no_grad(), compressing(backbone, method) as engine:
        backbone.model(**inputs, position_ids=backbone.positions(inputs))
        kept = [place for row in engine.report.kept for place in row]
    starts = [int(row.nonzero()[0, 0]) if row.any() else 0 for row in backbone.visual(inputs["input_ids"])]
    assert engine.report.tokens_out == [given[0], given[1] + given[2], 0]
    first = sorted(sorted(range(len(pictures[0])), key=lambda n: -pictures[0][n])[: given[0]])
    assert kept[: given[0]] == [starts[0] + n for n in first]


def test_what_leaves_every_image_as_many_is_refused() -> None:
    shape = tiny_backbone().shape
    for name in ("fastv", "prumerge", "visionzip+fastv"):
        with pytest.raises(UserError, match="budget=mean: .* leaves every image as many tokens; allowed: budget=each"):
            make(name, Budget(tokens=4, spread="mean").resolve, shape)
    assert make("prunesid", Budget(tokens=4, spread="mean").resolve, shape).tokens == 4
    assert make("prunesid", Budget(spread="mean").resolve, shape).tokens == 2  # a ninth of 16
    with pytest.raises(UserError, match="budget=half: allowed: each, mean"):
        Budget(tokens=4, spread="half")
