"""Compositions against their parts applied by hand: a walk over the layers in which nothing is removed, only hidden."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from torch import Tensor

from vtc.budget import Budget, compression_ratio, relative_flops
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.interface import Context, TowerUse
from vtc.job import Job
from vtc.methods import build, options_of
from vtc.methods.chain_order import together
from vtc.registry import methods, parts
from vtc.settings import MethodSettings
from vtc.testing import tiny_backbone
from vtc.testing.models import batch


def last_row(layer, rope, x: Tensor, hidden: Tensor) -> Tensor:
    """[L] what the last of x [L, D] pays to each in `layer`, mean over heads, in float64; `hidden` get nothing."""
    at, norm = layer.self_attn, layer.input_layernorm(x)
    q, k = (p(norm).view(len(x), -1, at.head_dim).double() for p in (at.q_proj, at.k_proj))
    cos, sin = (r[0, :, None].double() for r in rope)

    def rotated(t: Tensor) -> Tensor:
        a, b = t.chunk(2, -1)
        return t * cos + torch.cat([-b, a], -1) * sin

    q, k = rotated(q), rotated(k).repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = torch.einsum("hd,lhd->hl", q[-1], k) * at.head_dim**-0.5
    return scores.masked_fill(hidden, float("-inf")).softmax(-1).mean(0)


@torch.no_grad()
def by_hand(backbone, x: Tensor, visual: Tensor, steps: dict[int, int]) -> tuple[Tensor, list[int]]:
    """Last hidden states of one row x [L, D] that enters the LLM, with FastV before each layer of `steps` (→ how many
    stay), by masks alone; and the places that are visible at the end."""
    lm = backbone.decoder
    rope = lm.rotary_emb(x[None], torch.arange(len(x))[None])
    hidden, row = torch.zeros(len(x), dtype=torch.bool), None
    for i, layer in enumerate(lm.layers):
        if i in steps:
            left = (visual & ~hidden).nonzero()[:, 0]
            best = left[row[left].argsort(descending=True, stable=True)[: steps[i]]]
            hidden = visual & ~torch.zeros_like(hidden).index_fill(0, best, True)
        row = last_row(layer, rope, x, hidden)
        seen = torch.ones(len(x), len(x), dtype=torch.bool).tril() & ~hidden | torch.eye(len(x), dtype=torch.bool)
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(x.dtype).min)[None, None]
        x = layer(x[None], attention_mask=mask, position_embeddings=rope)[0]
    return lm.norm(x), (~hidden).nonzero()[:, 0].tolist()


@torch.no_grad()
def entered(backbone, method, inputs) -> Tensor:
    """[L, D] what the first layer gets to see under `method`."""
    seen: list[Tensor] = []
    hook = backbone.decoder.layers[0].register_forward_pre_hook(lambda m, args: seen.append(args[0][0]))
    try:
        with compressing(backbone, method):
            backbone.model(**inputs)
    finally:
        hook.remove()
    return seen[0]


FIRST = [
    ("none", 16, {}),
    ("divprune", 9, {}),
    ("visionzip", 12, {}),
    ("avgpool", 8, {}),
    ("random", 7, {}),
    ("tome", 9, {}),
    ("downsample", 9, {}),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "first", "options"), FIRST, ids=[f[0] for f in FIRST])
@pytest.mark.parametrize("steps", [{2: 4}, {1: 6, 3: 2}, {1: 5, 2: 4, 3: 3}], ids=str)
def test_fastv_behind_another_method(name: str, first: int, options: dict, steps: dict[int, int], seed: int) -> None:
    backbone = tiny_backbone(seed=seed)
    inputs = batch(backbone, (3,), (5,), (1,), seed=seed)
    x = entered(backbone, build(name, first, backbone.shape), inputs)
    visual = torch.zeros(len(x), dtype=torch.bool)
    visual[3:-5] = True
    assert visual.sum() == first
    expected, left = by_hand(backbone, x, visual, steps)

    own: dict = {name: {"tokens": first, **options}}
    for n, (layer, tokens) in enumerate(steps.items(), 1):
        key = "fastv" if len(steps) == 1 else f"fastv{n}"
        own[key] = {"layer": layer, "layer_scale": "none"} | ({"tokens": tokens} if n < len(steps) else {})
    method = build("+".join([name, *["fastv"] * len(steps)]), [*steps.values()][-1], backbone.shape, **own)
    with torch.no_grad(), compressing(backbone, method) as engine:
        got = backbone.model(**inputs, use_cache=False).logits[0, -5:]
        report = engine.report
    assert (got - backbone.model.lm_head(expected[-5:])).abs().max() < 3e-4
    counts = [first] * backbone.shape.depth
    for layer, tokens in steps.items():
        counts[layer:] = [tokens] * (backbone.shape.depth - layer)
    assert [layer[0] for layer in report.layers] == counts == method.layer_tokens()
    assert len(left) == 8 + method.tokens


@pytest.mark.parametrize("seed", range(3))
def test_pruners_before_the_llm_keep_what_they_keep_by_hand(seed: int) -> None:
    """The second sees what the first left, and nothing else: places and all."""
    backbone = tiny_backbone(seed=seed)
    from sequences import layout, sequence

    shape = backbone.shape
    tokens = sequence([layout(16, 16), layout(16)], seed=seed, compact=True)
    method = build("divprune+random", 4, shape, divprune={"tokens": 9}, random={"seed": seed})
    once = build("divprune", 9, shape).reduce(tokens, 0, Context(shape))
    twice = build("random", 4, shape, seed=seed).reduce(once, 0, Context(shape))
    got = method.reduce(tokens, 0, Context(shape, [(4, 4)] * 3))
    assert torch.equal(got.origin, twice.origin) and torch.equal(got.hidden, twice.hidden)
    assert torch.equal(got.position, twice.position)


def test_pooling_of_a_pooled_grid_is_pooling_of_the_image() -> None:
    backbone = tiny_backbone(grid=8)
    shape, inputs = backbone.shape, batch(backbone, (3,), (5,), (1,))
    chain = build("avgpool+avgpool", 4, shape, avgpool1={"tokens": 16})
    assert (entered(backbone, chain, inputs) - entered(backbone, build("avgpool", 4, shape), inputs)).abs().max() < 1e-5


def test_a_tower_that_sees_less_is_the_next_one_s_image() -> None:
    """FasterVLM chooses among the patches of the smaller image, by their CLS attention."""
    backbone = tiny_backbone()
    inputs = batch(backbone, (3,), (5,), (1,))
    seen: list = []
    method = build("downsample+fastervlm", 4, backbone.shape, downsample={"tokens": 9})
    part = list(method)[1]
    reduce = part.reduce

    def watched(tokens, layer, context):
        seen.append((tokens.images[0].shape, context.seen().features.shape[1], context.grids))
        return reduce(tokens, layer, context)

    part.reduce = watched  # type: ignore[method-assign]
    assert entered(backbone, method, inputs).shape[0] == 8 + 4
    assert seen == [((1, 9), 9, [(3, 3)])]


# ---------------------------------------------------------------------- budgets
def budgets(name: str, tokens: int | None, grid: int = 12, **options) -> list[int]:
    return [step.tokens for step in build(name, tokens, tiny_backbone(grid=grid).shape, **options).steps]


def test_budgets_of_the_parts() -> None:
    assert budgets("divprune+fastv", 16) == [48, 16]  # geometric: 144 · 48 · 16
    assert budgets("divprune+random+fastv", 18, random={"layer": 1}) == [72, 36, 18]
    assert budgets("divprune+random+fastv", 4, divprune={"tokens": 100}, random={"layer": 1}) == [100, 20, 4]
    assert budgets("divprune+random+fastv", 4, random={"layer": 1, "ratio": 0.25}) == [72, 36, 4]
    assert budgets("avgpool+fastv", 16) == [48, 16] and budgets("downsample+fastv", 16) == [49, 16]
    assert budgets("visionzip+fastv", None) == [16, 8]  # the defaults: a ninth, and half of that
    assert budgets("divprune+fastv", 144) == [144, 144]
    with pytest.raises(UserError, match="offers 1 to 16"):
        budgets("divprune+fastv", 36, divprune={"tokens": 16})


def test_compression_and_flops_search_the_last_part() -> None:
    shape = tiny_backbone(grid=12).shape
    cls = methods.get("divprune+fastv")
    for options in ({"divprune": {"tokens": 72}}, {}):
        for tokens in (2, 16, 60):
            make = partial(cls, shape=shape, **options)
            counts = make(tokens).layer_tokens()
            wanted = 72 if options else round((144 * tokens) ** 0.5)
            assert counts == [wanted] * 2 + [tokens] * 2
            assert make(Budget(compression=compression_ratio(counts, shape)).resolve).tokens == tokens
            assert make(Budget(flops=relative_flops(make(tokens))).resolve).tokens == tokens


def test_without_a_fixed_number_each_part_needs_a_budget() -> None:
    shape = dataclasses.replace(tiny_backbone().shape, visual_tokens=None, grid=None)
    assert [s.tokens for s in build("divprune+fastv", 4, shape, divprune={"tokens": 9}).steps] == [9, 4]
    with pytest.raises(UserError, match="no fixed number"):
        build("divprune+fastv", 4, shape)


# ---------------------------------------------------------------------- what the parts share
def test_the_tower_s_uses_are_put_together() -> None:
    a, b = TowerUse(watch=frozenset({1})), TowerUse(watch=frozenset({2}), image_size=12)
    both = together("a+b", {"a": a, "b": b})
    assert both == TowerUse(watch=frozenset({1, 2}), image_size=12)
    with pytest.raises(UserError, match="a and b both set the vision tower's image_size"):
        together("a+b", {"a": TowerUse(image_size=8), "b": b})
    one = torch.zeros(2, 3)
    assert together("a+b", {"a": TowerUse(summary=one), "b": b}).summary is one
    with pytest.raises(UserError, match="summary"):
        together("a+b", {"a": TowerUse(summary=one), "b": TowerUse(summary=one + 1)})
    with pytest.raises(UserError, match="both set the vision tower's image_size"):
        build("downsample+downsample", 4, tiny_backbone().shape)


def test_notes_of_the_parts_stay_apart() -> None:
    method = build("fastv+fastv", 3, tiny_backbone().shape, fastv2={"layer": 3, "layer_scale": "none"})
    context = Context(method.shape)
    for step in method.steps:
        method.seen_by(step, context).memo["kept"] = step.key
    assert context.memo == {"fastv1": {"kept": "fastv1"}, "fastv2": {"kept": "fastv2"}}


def test_names() -> None:
    assert parts("fastv+avgpool+fastv") == {"fastv1": "fastv", "avgpool": "avgpool", "fastv2": "fastv"}
    assert options_of("random+fastv") == {
        "random": {"tokens": None, "ratio": None, "layer": 0, "seed": 0, "layer_scale": "auto"},
        "fastv": {"layer": 2, "layer_scale": "auto"},
    }
    both = MethodSettings("visionzip+fastv", {"visionzip": {"tokens": 36, "ratio": None}, "fastv": {}})

    def in_words(method: MethodSettings, **budget: float) -> str:
        return Job(method=method, budget=Budget(**budget)).budget_in_words

    assert in_words(both, tokens=16) == "tokens=36-16"
    assert in_words(both, flops=0.3) == "tokens=36-flops=0.3"
    assert in_words(both) == "tokens=36-auto"
    assert in_words(MethodSettings("fastv"), tokens=16) == "tokens=16"
    assert not in_words(MethodSettings("visionzip+fastv", {"visionzip": {}, "fastv": {}}))
