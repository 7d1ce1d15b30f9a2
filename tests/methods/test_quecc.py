"""QueCC against loops over windows, patches and heads, and against its questions read one by one, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from projectors import attend, every_parameter_learns, gelu, norm, random_tower, randomised, shape_of, states
from reference import decoder
from torch import Tensor
from tower_reference import double, equals, rows

from vtc.backbones.base import Backbone
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.methods import build
from vtc.methods.quecc import QueCC
from vtc.testing import tiny_backbone
from vtc.testing.models import packed


def two_layers(x: Tensor, first: torch.nn.Linear, second: torch.nn.Linear) -> Tensor:
    return second.weight @ gelu(first.weight @ x + first.bias) + second.bias


def asked(method: QueCC, features: Tensor, levels: list[Tensor], question: Tensor, grid: tuple[int, int]) -> Tensor:
    """[M, D] of one image, features [N, C] and levels [N, C] each, and the state [D] of its question."""
    s = math.isqrt(grid[0] * grid[1] // method.tokens)
    at, inject, (to_text, text_norm) = method.injection.attention, method.injection, method.text
    w, b = at.in_proj_weight.chunk(3), at.in_proj_bias.chunk(3)
    t = norm(to_text.weight @ question + to_text.bias, text_norm)
    made = []
    for top in range(0, grid[0], s):
        for left in range(0, grid[1], s):
            window = [(r, c) for r in range(top, top + s) for c in range(left, left + s)]
            q = method.shrink.bias.clone()
            for r, c in window:
                first, _, second, last = method.query
                known = norm(two_layers(features[r * grid[1] + c] + t, first, second), last)
                q += method.shrink.weight[:, 0, r - top, c - left] * known
            mapped = []
            for first, _, second, last in (inject.key, inject.value):
                fine = [torch.cat([level[r * grid[1] + c] for level in levels]) for r, c in window]
                mapped.append([norm(two_layers(f, first, second), last) for f in fine])
            keys, values = [w[1] @ k + b[1] for k in mapped[0]], [w[2] @ v + b[2] for v in mapped[1]]
            out = at.out_proj.weight @ attend(w[0] @ q + b[0], keys, values, at.num_heads) + at.out_proj.bias
            made.append(two_layers(out, method.mlp[0], method.mlp[2]))
    return torch.stack(made)


def read(backbone: Backbone, ids: Tensor) -> Tensor:
    """[D]: the LLM's state at the end of these words alone."""
    return decoder(backbone, backbone.decoder.embed_tokens(ids), torch.arange(len(ids)))[-1]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("grid", "tokens", "options", "layers"),
    [
        ((4, 4), 4, {}, [1, 2, 3]),
        ((4, 4), 1, {"heads": 3}, [1, 2, 3]),
        ((6, 3), 2, {"tower_layers": [3, 0]}, [3, 0]),
        ((2, 3), 6, {"heads": 1}, [1, 2, 3]),
    ],
)
@torch.no_grad()
def test_equals_loops_over_windows(grid, tokens, options, layers, seed) -> None:
    shape = shape_of(grid)
    method = randomised(build("quecc", tokens, shape, **options), seed)
    assert method.tower().levels == frozenset(layers) and not method.tower().projects
    tower = random_tower(shape, 2, seed, layers)
    question = torch.randn(2, shape.width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    got = method.pack(tower, question)
    for i in range(2):
        want = asked(method, tower.features[i], [tower.levels[n][i, 1:] for n in layers], question[i], grid)
        assert (got[i] - want).abs().max() < 1e-10


@pytest.mark.parametrize(("seed", "images"), [(0, (1, 2, 0)), (1, (0, 1, 1))])
@torch.no_grad()
def test_each_image_is_made_for_the_question_behind_it(seed: int, images: tuple[int, ...]) -> None:
    backbone = double(seed)
    method, inputs = randomised(build("quecc", 4, backbone.shape), seed), rows(backbone, images, seed)
    seen, made = states(backbone, inputs["pixel_values"]), []
    for row, count in enumerate(images):
        ids = inputs["input_ids"][row]
        if count:
            behind = int((ids == backbone.image_token_id).nonzero()[-1]) + 1
            question = read(backbone, ids[behind:])
        for _ in range(count):
            i = len(made)
            made.append(asked(method, seen[1][i], [seen[n + 1][i] for n in method.fine], question, (4, 4)))
    equals(backbone, method, inputs, made)


@torch.no_grad()
def test_an_image_at_the_end_is_asked_about_by_the_text_before_it() -> None:
    backbone = double()
    method, inputs = randomised(build("quecc", 4, backbone.shape)), rows(backbone, (1, 1, 1))
    pixels, seen = inputs["pixel_values"][:1], []
    method.pack = lambda tower, question: (seen.append(question), QueCC.pack(method, tower, question))[1]
    row = inputs["input_ids"][0, inputs["attention_mask"][0].bool()][:-6]
    with compressing(backbone, method):
        for words in (2, 0):
            ids = row[2 - words :]
            assert ids[-1] == backbone.image_token_id and int((ids != ids[-1]).sum()) == words
            out = backbone.model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], pixel_values=pixels)
            assert torch.isfinite(out.logits).all()
    assert (seen[0][0] - read(backbone, row[:2])).abs().max() < 1e-6


@pytest.mark.parametrize("questions", [1, 3])
@torch.no_grad()
def test_packed_questions_are_read_one_by_one_and_ask_together(questions: int) -> None:
    backbone = double()
    method = randomised(build("quecc", 4, backbone.shape))
    inputs, blocks = packed(backbone, questions)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    inputs["labels"][:, :] = -100
    for row in range(2):  # the last two words of each question are its answer, which has no say
        for q in range(1, questions + 1):
            own = (blocks[row] == q).nonzero()[:, 0]
            inputs["labels"][row, own[-2:]] = inputs["input_ids"][row, own[-2:]]
    seen, got = [], []

    def remember(tower, question):
        seen.append(question)
        got.append(QueCC.pack(method, tower, question))
        return got[-1]

    method.pack = remember
    with compressing(backbone, method) as engine, engine.blocks(blocks):
        backbone.model(**inputs, use_cache=False)
    tower = states(backbone, inputs["pixel_values"])
    for row in range(2):
        said = [inputs["input_ids"][row, blocks[row] == q][:-2] for q in range(1, questions + 1)]
        want = sum(read(backbone, ids) for ids in said) / questions
        assert (seen[0][row] - want).abs().max() < 1e-6
        levels = [tower[n + 1][row] for n in method.fine]
        assert (got[0][row] - asked(method, tower[1][row], levels, want, (4, 4))).abs().max() < 1e-6


def test_the_llm_learns_under_autocast_all_the_same() -> None:
    """Casts of its weights that the pass without gradients made must not serve the one with them."""
    backbone = tiny_backbone()
    method = build("quecc", 4, backbone.shape)
    inputs, blocks = packed(backbone)
    with compressing(backbone, method) as engine, engine.blocks(blocks), torch.autocast("cpu", torch.bfloat16):
        loss = backbone.model(**inputs, use_cache=False).loss
    loss.backward()
    for name, p in backbone.decoder.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name


def test_no_gradient_flows_through_the_question() -> None:
    backbone = double()
    method = randomised(build("quecc", 4, backbone.shape))
    inputs, seen = rows(backbone, (1, 1, 1)), []
    method.pack = lambda tower, question: (seen.append(question), QueCC.pack(method, tower, question))[1]
    with compressing(backbone, method):
        assert backbone.model(**inputs, use_cache=False).logits.requires_grad
    assert not seen[0].requires_grad


def test_every_parameter_learns() -> None:
    shape = shape_of((6, 6))
    method = randomised(build("quecc", 4, shape))
    tower = random_tower(shape, 2, 0, method.fine)
    every_parameter_learns(method, method.pack(tower, torch.randn(2, shape.width, dtype=torch.float64)))


def test_parameters_at_the_papers_size() -> None:
    shape, c = shape_of((24, 24), 1024, 24, -2), 1024
    with torch.device("meta"):
        method = build("quecc", 1, shape)
    d, branch = shape.width, 4 * c * c + c + c * c + c + 2 * c
    text, query, convolution = d * c + 3 * c, 2 * (c * c + c) + 2 * c, c * 24 * 24 + c
    inject = 2 * branch + 4 * (c * c + c)
    assert method.extra_parameters == text + query + convolution + inject + c * d + d + d * d + d


def test_budgets_and_refusals() -> None:
    shape = tiny_backbone().shape
    assert QueCC(None, shape).offers() == [1, 4, 16] and build("quecc", None, shape).tokens == 4
    assert build("quecc", 4, shape).reads_prompt
    for tokens, grid, options, what in (
        (5, (4, 4), {}, "tokens=5: quecc on .* offers 1, 4, 16"),
        (4, None, {}, "method=quecc: .*grid"),
        (4, (4, 4), {"heads": 5}, "method.heads=5: method=quecc .*width of 24"),
        (4, (4, 4), {"tower_layers": [9]}, "method.tower_layers=.*-4 to 3"),
    ):
        with pytest.raises(UserError, match=what):
            build("quecc", tokens, shape_of(grid), **options)
