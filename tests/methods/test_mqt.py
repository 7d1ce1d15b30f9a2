"""MQT against its cross-attention written out query by query in float64, and what makes it a matryoshka."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import pytest
import torch
from sequences import layout, sequence

from vtc.engine import compressing
from vtc.errors import UserError
from vtc.interface import Context
from vtc.methods import build
from vtc.testing import batch, tiny_backbone


def embedding(column: float, row: float, width: int) -> torch.Tensor:
    """Half of the width for each axis; sines, then cosines, of falling frequencies."""
    out = []
    for at in (column, row):
        angles = [at / 10000 ** (i / (width // 4)) for i in range(width // 4)]
        out += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    return torch.tensor(out, dtype=torch.float64)


def mirrored(number: int, base: int) -> float:
    value, scale = 0.0, 1.0
    while number:
        scale /= base
        value += scale * (number % base)
        number //= base
    return value


def written_out(method, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """[N, D] features of one image → [m, D], one query and one head at a time."""
    width, heads, side = method.shape.width, method.shape.heads, method.side
    d = width // heads
    norm = torch.nn.functional.layer_norm

    def normed(layer, y):
        return norm(y, (width,), layer.weight.double(), layer.bias.double(), layer.eps)

    def linear(layer, y):
        return layer.weight.double() @ y + layer.bias.double()

    x, keys, values = x.double(), [], []
    for j in range(grid[0] * grid[1]):
        row, column = divmod(j, grid[1])
        place = embedding((column + 0.5) * side / grid[1] - 0.5, (row + 0.5) * side / grid[0] - 0.5, width)
        keys.append(linear(method.k, normed(method.norm_k, place + (x[j] if method.keys == "image" else 0))))
        values.append(linear(method.v, normed(method.norm_v, x[j])))
    made = []
    for i in range(method.tokens):
        point = [mirrored(i + 1, base) * side - 0.5 for base in (2, 3)]
        q = linear(method.q, normed(method.norm_q, method.queries[i].double() + embedding(*point, width)))
        read = []
        for h in range(heads):
            at = slice(h * d, h * d + d)
            weight = torch.stack([q[at] @ k[at] / math.sqrt(d) for k in keys]).softmax(0)
            read.append(sum(w * v[at] for w, v in zip(weight, values, strict=True)))
        made.append(linear(method.out, torch.cat(read)))
    return torch.stack(made)


def randomised(tokens: int | None, shape, seed: int, **options):
    """With every parameter away from where it begins."""
    method = build("mqt", tokens, shape, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in method.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return method


@pytest.mark.parametrize("keys", ["position", "image"])
@pytest.mark.parametrize(("tokens", "most", "seed"), [(1, 256, 0), (4, 9, 1), (9, 9, 2), (16, 256, 3)])
def test_the_cross_attention_written_out(keys: str, tokens: int, most: int, seed: int) -> None:
    """Images of two grids side by side: the shorter one's padding is not read."""
    shape = tiny_backbone().shape
    method = randomised(tokens, shape, seed, max_tokens=most, keys=keys)
    grids = [(4, 4), (3, 5), (4, 4)]
    given = sequence([layout(h * w) for h, w in grids], shape.width, seed)
    x = given.visual_hidden()
    with torch.no_grad():
        got = method.reduce(given, 0, Context(shape, grids=grids)).visual_hidden()
        assert got.shape == (3, tokens, shape.width)
        for image, grid in enumerate(grids):
            expected = written_out(method, x[image], grid)
            assert (got[image] - expected).abs().max() < 1e-4


def bicubic(distance: float) -> float:
    """Keys's kernel with a = -3/4, as image libraries have it."""
    a, x = -0.75, abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resized(table: list[torch.Tensor], side: int, grid: tuple[int, int]) -> list[torch.Tensor]:
    """The vectors of a raster at the centres of the cells of `grid`, its edges repeated outside."""
    out = []
    for r in range(grid[0]):
        for c in range(grid[1]):
            y, x = (r + 0.5) * side / grid[0] - 0.5, (c + 0.5) * side / grid[1] - 0.5
            near = [(math.floor(y) + i, math.floor(x) + j) for i in range(-1, 3) for j in range(-1, 3)]
            inside = lambda at: min(max(at, 0), side - 1)  # noqa: E731
            out.append(sum(bicubic(y - i) * bicubic(x - j) * table[inside(i) * side + inside(j)] for i, j in near))
    return out


@pytest.mark.parametrize(("most", "grid"), [(256, (24, 24)), (256, (3, 5)), (9, (4, 4))])
def test_positions_as_the_authors_have_them(most: int, grid: tuple[int, int]) -> None:
    """Queries row by row; keys of the raster's table in half precision, resized."""
    shape, side = tiny_backbone().shape, math.isqrt(most)
    method = build("mqt", 4, shape, max_tokens=most, positions="raster")
    table = [embedding(i % side, i // side, shape.width).half().double() for i in range(most)]
    queries, keys = method.encodings(4, [grid], torch.device("cpu"))
    assert (queries - torch.stack(table[:4])).abs().max() < 1e-6
    assert (keys[0] - torch.stack(resized(table, side, grid))).abs().max() < 1e-5
    own = build("mqt", 4, shape, max_tokens=most).encodings(4, [grid], torch.device("cpu"))[1]
    apart = float((keys - own).abs().max())
    assert apart > 0.01 and (grid != (24, 24) or abs(apart - 0.1056) < 1e-4), "what the docstring says"


@pytest.mark.parametrize("keys", ["position", "image"])
def test_the_authors_positions_are_read(keys: str) -> None:
    """The layer is the same but for what is added to queries and keys."""
    shape = tiny_backbone().shape
    method = randomised(4, shape, 0, keys=keys, positions="raster")
    x, context = torch.randn(1, 16, shape.width), Context(shape, grids=[(4, 4)])
    queries, places = method.encodings(4, [(4, 4)], torch.device("cpu"))
    with torch.no_grad():
        got = method(x, context)
        read = method.norm_k(places + x if keys == "image" else places)
        q, k, v = (
            method.q(method.norm_q(method.queries[:4] + queries)),
            method.k(read)[0],
            method.v(method.norm_v(x))[0],
        )
        heads = [t.unflatten(-1, (shape.heads, -1)).transpose(0, 1) for t in (q, k, v)]
        weight = (heads[0] @ heads[1].transpose(1, 2) / math.sqrt(shape.width / shape.heads)).softmax(-1)
        expected = method.out((weight @ heads[2]).transpose(0, 1).flatten(1))
    assert (got[0] - expected).abs().max() < 1e-4


def test_fewer_tokens_are_the_first_of_more() -> None:
    """What makes one checkpoint serve every budget."""
    shape = tiny_backbone().shape
    method = randomised(None, shape, 0)
    x, context = torch.randn(2, 16, shape.width), Context(shape, grids=[(4, 4)] * 2)
    with torch.no_grad():
        all_of_them = method(x, context)
        for m in (1, 2, 7, 15):
            method.tokens = m
            assert torch.allclose(method(x, context), all_of_them[:, :m], atol=1e-6)


@pytest.mark.parametrize("keys", ["position", "image"])
def test_the_image_enters_through_the_values_alone_unless_asked(keys: str) -> None:
    """With keys of positions the layer is linear in the normalised features: one set of weights for every image."""
    shape = tiny_backbone().shape
    method = randomised(6, shape, 0, keys=keys)
    with torch.no_grad():
        method.norm_v = torch.nn.Identity()
        for layer in (method.v, method.out):
            layer.bias.zero_()
        a, b = torch.randn(2, 1, 16, shape.width, generator=torch.Generator().manual_seed(0))
        of = lambda x: method(x, Context(shape, grids=[(4, 4)]))  # noqa: E731
        linear = torch.allclose(of(2 * a - 3 * b), 2 * of(a) - 3 * of(b), atol=1e-4)
    assert linear == (keys == "position")


@pytest.mark.parametrize("m", [4, 16, 64])
def test_the_first_queries_begin_spread_over_the_image(m: int) -> None:
    """Each begins as the mean of the features around its point: a ramp over the image is read back, for every m."""
    shape = replace(tiny_backbone(grid=12).shape, heads=1)
    torch.manual_seed(0)
    method = build("mqt", m, shape)
    cells = torch.arange(144)
    with torch.no_grad():
        place = method.cells((12, 12), torch.device("cpu"))[None]
        seen = torch.zeros(144)
        points = torch.stack([torch.tensor([mirrored(i + 1, b) for i in range(m)]) for b in (2, 3)], -1)
        own = points * method.side - 0.5
        nearest = torch.cdist(own, place[0]).argmin(1)
        seen[nearest] = 1
    rows, columns = cells[seen.bool()] // 12, cells[seen.bool()] % 12
    for axis in (rows, columns):
        assert (axis < 6).any() and (axis >= 6).any() and abs(axis.float().mean() - 5.5) < 2


def test_through_the_engine_it_is_exact_at_every_budget() -> None:
    backbone = tiny_backbone()
    method = build("mqt", None, backbone.shape)
    inputs = batch(backbone, images=(1, 2, 0))
    for tokens in (1, 3, 16):
        method.tokens = tokens
        with torch.no_grad(), compressing(backbone, method) as engine:
            backbone.model(**inputs)
        assert engine.report.tokens_out == [tokens, 2 * tokens, 0]


def test_training_draws_even_numbers_uniformly() -> None:
    shape = replace(tiny_backbone().shape, grid=(24, 24), visual_tokens=576)
    method = build("mqt", 16, shape)
    drawn = [method.training_budgets(Random(f"s/{step}")) for step in range(2560)]
    assert {m for (m,) in drawn} == set(range(2, 257, 2))
    assert abs(sum(m for (m,) in drawn) / len(drawn) - 129) < 6
    assert method.extra_parameters == 256 * 32 + 3 * 2 * 32 + 4 * (32 * 32 + 32)
    few = build("mqt", None, tiny_backbone().shape)
    assert few.most == few.tokens == 16  # no more queries than the image has tokens
    assert {few.training_budgets(Random(i))[0] for i in range(200)} == set(range(2, 17, 2))
    assert build("mqt", None, tiny_backbone().shape, max_tokens=1).training_budgets(Random(0)) == [1]


@pytest.mark.parametrize(
    ("tokens", "options", "words"),
    [
        (10, {"max_tokens": 9}, "tokens=10: mqt on .* offers 1 to 9"),
        (None, {"max_tokens": 0}, "method.max_tokens=0: allowed: 1 or more"),
        (4, {"keys": "positions"}, "method.keys=positions.*position"),
        (4, {"positions": "table"}, "method.positions=table.*spread"),
        (4, {"positions": "raster", "max_tokens": 10}, "method.max_tokens=10 is no square"),
    ],
)
def test_what_it_can_not_do_is_refused(tokens: int | None, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build("mqt", tokens, tiny_backbone().shape, **options)


def test_an_image_without_a_grid_is_refused() -> None:
    shape = tiny_backbone().shape
    with pytest.raises(UserError, match="no grid"):
        build("mqt", 4, shape)(torch.randn(1, 7, shape.width), Context(shape, grids=[None]))
    with pytest.raises(UserError, match="tokens=20: mqt has method.max_tokens=16"):
        build("mqt", 20, replace(shape, visual_tokens=None, grid=None), max_tokens=16)
