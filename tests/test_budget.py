"""Budgets: met exactly, or refused with what there is."""

from __future__ import annotations

import pytest

from vtc.budget import Budget, compression, compression_ratio, relative_flops
from vtc.errors import UserError
from vtc.interface import BackboneShape, TowerShape
from vtc.methods import make

LLAVA = BackboneShape(
    "llava",
    32,
    4096,
    576,
    (24, 24),
    11008,
    32,
    32,
    32064,
    TowerShape(24, 1024, 4096, 16, 336, 14, -2, cls=1, tokens=577),
)


def resolved(name: str, options: dict | None = None, **budget) -> int | None:
    return make(name, Budget(**budget).resolve, LLAVA, **(options or {})).tokens


def test_tokens_are_met_exactly_or_refused() -> None:
    assert resolved("fastv", tokens=64) == 64
    assert resolved("avgpool", {"dims": 1}, tokens=37) == 37
    for name, tokens, text in (
        ("fastv", 577, "offers 1 to 576"),
        ("avgpool", 37, "offers 1, 2, 3, 4, 6"),
        ("none", 16, "offers 576"),
    ):
        with pytest.raises(UserError, match=f"tokens={tokens}: {name} on llava {text}"):
            resolved(name, tokens=tokens)


def test_a_budget_is_one_of_four_and_sane() -> None:
    for wrong in (
        {"tokens": 16, "ratio": 0.1},
        {"tokens": 0},
        {"tokens": 1.5},
        {"tokens": "16"},
        {"tokens": True},
        {"ratio": 0},
        {"ratio": 1.1},
        {"compression": 0.9},
        {"flops": 0},
    ):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Budget(**wrong)


def test_no_budget_is_the_methods_default() -> None:
    defaults = {
        "none": None,
        "random": None,
        "avgpool": None,
        "llavolta": None,
        "fastv": 288,
        "victor": 8,
        "fwd2bot": 16,
    }
    assert {name: resolved(name) for name in defaults} == defaults


def test_ratio_takes_the_nearest_count_there_is() -> None:
    assert resolved("fastv", ratio=0.1) == 58
    assert resolved("avgpool", ratio=0.1) == 64  # 57.6 asked; 2-D offers 48 and 64
    assert resolved("none", ratio=1.0) == 576


def test_compression_is_equation_3_of_llavolta() -> None:
    assert resolved("llavolta", compression=5.57) == 72  # stride 8 before layer 2
    assert resolved("llavolta", {"layer": 16}, compression=16 / 9) == 72
    assert resolved("fastv", compression=1.88) == 288
    assert compression_ratio([576] * 32, LLAVA) == 1
    with pytest.raises(UserError, match="compression=40: fastv on llava reaches 1 to"):
        resolved("fastv", compression=40)


def test_flops_compare_methods_that_act_at_different_depths() -> None:
    early, late = resolved("random", flops=0.25), resolved("random", {"layer": 2}, flops=0.25)
    assert early > late  # dropping before the LLM costs less, so more may stay
    for layer, tokens in ((0, early), (2, late)):
        cost = relative_flops(make("random", tokens, LLAVA, layer=layer))
        assert cost == pytest.approx(0.25, abs=0.002) and cost <= 0.25
    with pytest.raises(UserError, match="flops=0.1: fastv"):
        resolved("fastv", {"layer": 16}, flops=0.1)


def test_flops_are_those_that_torch_counts() -> None:
    import torch

    from vtc.interface import flops
    from vtc.profiling.counter import flop_counter
    from vtc.testing import tiny_backbone

    backbone = tiny_backbone(width=64, attention="eager", kv_heads=2)
    x = torch.randn(1, 16 + 64, 64)
    with flop_counter() as counter, torch.no_grad():
        backbone.decoder(inputs_embeds=x, use_cache=False)
    counted = counter.get_total_flops()
    # eager computes the whole square of the attention, of which causal attention needs half
    square = 2 * 2 * 80**2 * 64 * 4
    calls = make("random", 16, backbone.shape).calls(64)
    assert flops.total(backbone.shape, calls) == pytest.approx(counted - square / 2, rel=0.01)


def test_flops_count_the_passes_that_a_method_runs_itself() -> None:
    """Fwd2Bot: 576 + 16 + 9 tokens of the prompt in the first pass, 16 + 64 in the second, LoRA of rank 32 in both."""
    method = make("fwd2bot", 16, LLAVA)
    linear = 4 * 4096**2 + 3 * 4096 * 11008
    lora = 32 * (4 * 2 * 4096 + 3 * (4096 + 11008))

    def layer(n: int, adapter: int) -> float:
        return 2 * n * (linear + adapter) + 2 * n**2 * 4096

    head = 2 * 4096 * 32064
    full = 32 * layer(576 + 64, 0) + head
    assert relative_flops(method) == pytest.approx((32 * (layer(601, lora) + layer(80, lora)) + head) / full)
    assert relative_flops(method, beforehand=True) == pytest.approx((32 * layer(80, lora) + head) / full)
    assert relative_flops(method) > 1.07 > 0.13 > relative_flops(method, beforehand=True) > 0.12
    assert relative_flops(make("fwd2bot", 16, LLAVA, adapters="none")) == pytest.approx(1.062, abs=0.001)
    assert compression(method) == 576 / (592 + 16) and compression(method, beforehand=True) == 36


def test_what_no_count_can_reach_is_refused_with_what_stored_images_cost() -> None:
    for name, budget, text in (
        ("fwd2bot", {"flops": 0.25}, "reaches 1.028 to 2.87, with 1 to 576 tokens; 0.102 to 1.01 where images were"),
        ("fwd2bot", {"compression": 4}, "reaches 0.3333 to 0.997, with 1 to 576 tokens; 1 to 576 where images were"),
        ("voco", {"flops": 0.5}, "reaches 1.002 to 1.92, with 1 to 576 tokens; 0.0989 to 0.101 where images were"),
        ("pyramiddrop", {"flops": 0.25}, "reaches 0.358 to 1, with 1 to 576 tokens$"),
    ):
        with pytest.raises(UserError, match=text):
            resolved(name, **budget)
    assert relative_flops(make("pyramiddrop", resolved("pyramiddrop", flops=0.358), LLAVA)) <= 0.358  # as it was said


def test_flops_take_the_nearest_count_that_does_not_cost_more() -> None:
    for name in ("avgpool", "kmeans", "perceiver", "divprune+fastv"):
        tokens = resolved(name, flops=0.3)
        offers = make(name, None, LLAVA).offers() if "+" not in name else range(1, 577)
        cost = {n: relative_flops(make(name, n, LLAVA)) for n in {tokens, *[n for n in offers if n > tokens][:1]}}
        assert cost.pop(tokens) <= 0.3 < min(cost.values())
    assert resolved("random", flops=1.0) == resolved("kmeans", flops=1.0) == 576


def test_registers_count_where_they_run() -> None:
    assert make("victor", 8, LLAVA).layer_tokens() == [584] * 3 + [8] * 29
    assert make("fwd2bot", 16, LLAVA).layer_tokens() == [16] * 32
