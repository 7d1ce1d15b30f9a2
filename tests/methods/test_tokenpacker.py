"""TokenPacker against loops over windows, patches and heads, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from projectors import (
    attend,
    context_of,
    every_parameter_learns,
    gelu,
    norm,
    random_tower,
    randomised,
    shape_of,
    states,
)
from torch import Tensor
from tower_reference import double, equals, rows

from vtc.errors import UserError
from vtc.methods import build
from vtc.methods.tokenpacker import TokenPacker
from vtc.testing import tiny_backbone


def coarse(patches: Tensor, window: list[tuple[int, int]], stride: int, width: int) -> Tensor:
    """The bilinear sample in the middle of a window: its central patch, or the mean of the four around the middle."""
    middle = (window[0][0] + (stride - 1) / 2, window[0][1] + (stride - 1) / 2)
    near = [(r, c) for r, c in window if abs(r - middle[0]) < 1 and abs(c - middle[1]) < 1]
    assert len(near) == (1 if stride % 2 else 4)
    return sum(patches[r * width + c] for r, c in near) / len(near)


def packed(method: TokenPacker, features: Tensor, levels: list[Tensor], grid: tuple[int, int]) -> Tensor:
    """[M, D] of one image: features [N, C], levels [N, C] each."""
    s = math.isqrt(grid[0] * grid[1] // method.tokens)
    at, inject = method.injection.attention, method.injection
    w, b = at.in_proj_weight.chunk(3), at.in_proj_bias.chunk(3)
    fine = [torch.cat([level[n] for level in levels]) for n in range(len(features))]
    made = []
    for top in range(0, grid[0], s):
        for left in range(0, grid[1], s):
            window = [(r, c) for r in range(top, top + s) for c in range(left, left + s)]
            q = norm(method.query[0].weight @ coarse(features, window, s, grid[1]), method.query[1])
            mapped = []
            for branch in (inject.key, inject.value):
                first, _, second, last = branch
                hidden = [gelu(first.weight @ fine[r * grid[1] + c] + first.bias) for r, c in window]
                mapped.append([norm(second.weight @ h + second.bias, last) for h in hidden])
            keys, values = [w[1] @ k + b[1] for k in mapped[0]], [w[2] @ v + b[2] for v in mapped[1]]
            out = attend(w[0] @ q + b[0], keys, values, at.num_heads)
            out = at.out_proj.weight @ out + at.out_proj.bias
            first, _, second = method.mlp
            made.append(second.weight @ gelu(first.weight @ out + first.bias) + second.bias)
    return torch.stack(made)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("grid", "tokens", "options", "layers"),
    [
        ((4, 4), 4, {}, [1, 2, 3]),
        ((6, 6), 4, {"heads": 3}, [1, 2, 3]),
        ((6, 6), 9, {"tower_layers": [3, 0]}, [3, 0]),  # side by side as given
        ((4, 8), 2, {"heads": 1}, [1, 2, 3]),
        ((6, 3), 2, {"tower_layers": [-1, 3]}, [3]),
        ((3, 2), 6, {}, [1, 2, 3]),  # a window of one patch
    ],
)
@torch.no_grad()
def test_equals_loops_over_windows(grid, tokens, options, layers, seed) -> None:
    shape = shape_of(grid)
    method = randomised(build("tokenpacker", tokens, shape, **options), seed)
    assert method.fine == layers and method.tower().levels == frozenset(layers) and not method.tower().projects
    tower = random_tower(shape, 2, seed, layers)
    got = method(tower.features, context_of(shape, tower))
    for image in range(2):
        want = packed(method, tower.features[image], [tower.levels[n][image, 1:] for n in layers], grid)
        assert (got[image] - want).abs().max() < 1e-10


@pytest.mark.parametrize(("seed", "grid", "tokens"), [(0, 4, 4), (1, 6, 9)])
def test_the_llm_reads_what_it_makes_of_each_image(seed: int, grid: int, tokens: int) -> None:
    backbone, layers = double(seed, grid), [1, 0]
    method = randomised(build("tokenpacker", tokens, backbone.shape, tower_layers=layers), seed)
    inputs = rows(backbone, (1, 2, 0), seed)
    seen = states(backbone, inputs["pixel_values"])
    made = [packed(method, seen[1][i], [seen[n + 1][i] for n in layers], (grid, grid)) for i in range(3)]
    equals(backbone, method, inputs, made)


def test_layers_and_parameters_at_the_papers_size() -> None:
    shape = shape_of((24, 24), 1024, 24, -2)
    with torch.device("meta"):
        method = build("tokenpacker", 144, shape)
    c, d = 1024, shape.width
    assert method.fine == [11, 15, 21, 22]  # hidden states 12, 16, 22, 23
    branch = 4 * c * c + c + c * c + c + 2 * c
    assert method.extra_parameters == c * c + 2 * c + 2 * branch + 4 * (c * c + c) + c * d + d + d * d + d
    with torch.device("meta"):
        assert TokenPacker(36, shape_of((12, 12), 128, 4, -1)).fine == [1, 2, 3]  # pocket's tower


def test_every_parameter_learns() -> None:
    shape = shape_of((6, 6))
    method = randomised(build("tokenpacker", 4, shape))
    tower = random_tower(shape, 2, 0, method.fine)
    every_parameter_learns(method, method(tower.features, context_of(shape, tower)))


def test_budgets_are_those_of_a_common_stride() -> None:
    assert sorted(TokenPacker(None, shape_of((24, 24))).offers()) == [1, 4, 9, 16, 36, 64, 144, 576]
    assert sorted(TokenPacker(None, shape_of((4, 6))).offers()) == [6, 24]
    assert (
        build("tokenpacker", None, shape_of((24, 24))).tokens
        == TokenPacker(None, shape_of((24, 24))).default_tokens()
        == 144
    )
    assert (
        TokenPacker(None, shape_of((9, 9))).default_tokens() == 9
        and TokenPacker(None, shape_of((5, 3))).default_tokens() == 15
    )
    with pytest.raises(UserError, match="tokens=5: tokenpacker on .* offers 1, 4, 16"):
        build("tokenpacker", 5, tiny_backbone().shape)
    with pytest.raises(UserError, match="tokens=5: tokenpacker on .* offers 1, 4, 16"):
        TokenPacker(5, tiny_backbone().shape)


def test_what_it_cannot_do_is_refused() -> None:
    shape = tiny_backbone().shape
    with pytest.raises(UserError, match="method=tokenpacker: .*grid"):
        build("tokenpacker", 4, shape_of(None))
    for heads in (0, 3):
        with pytest.raises(UserError, match=f"method.heads={heads}: .*width of 16"):
            build("tokenpacker", 4, shape, heads=heads)
    for layers in ([2], [], [-3], [True]):
        with pytest.raises(UserError, match="method.tower_layers=.*-2 to 1"):
            build("tokenpacker", 4, shape, tower_layers=layers)


def test_a_tower_without_cls() -> None:
    shape = shape_of((4, 4), cls=0)
    method = randomised(build("tokenpacker", 4, shape))
    bare = random_tower(shape, 1, 0, method.fine, extra=0)
    with_cls = random_tower(shape, 1, 0, method.fine)
    for layer in method.fine:
        with_cls.levels[layer] = torch.cat([with_cls.levels[layer][:, :1], bare.levels[layer]], 1)
    with torch.no_grad():
        got = [method(bare.features, context_of(shape, tower)) for tower in (bare, with_cls)]
    assert torch.equal(*got)
