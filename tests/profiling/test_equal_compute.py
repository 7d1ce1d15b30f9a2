"""Equal compute: what `flops=` and `compression=` come to is the nearest that a method offers, and is what runs."""

from __future__ import annotations

import functools

import pytest
from test_flops import agrees

from vtc import registry
from vtc.budget import Budget, compression, relative_flops
from vtc.errors import UserError
from vtc.interface import BackboneShape, TowerShape
from vtc.methods import make
from vtc.testing import tiny_backbone

# LLaVA-1.5 at an eighth of its width and with a quarter of its patches: all of its layers, and few offers to try.
SHAPE = BackboneShape(
    "llava", 32, 512, 144, (12, 12), 1376, 4, 4, 32064, TowerShape(24, 128, 512, 2, 168, 14, -2, cls=1, tokens=145)
)
COMPOSED = ["divprune+fastv", "visionzip+pyramiddrop", "tome+pyramiddrop", "kmeans+ppe"]
NAMES = [*registry.methods._builtin, *COMPOSED]
OWN_PASSES = ("fwd2bot", "voco")  # whose first pass costs more than an uncompressed prefill
NETWORKS = ("mqt", "perceiver", "qformer", "quecc", "tokenpacker")  # counting all of their offers takes a minute
SEARCHED = [name for name in NAMES if name not in (*NETWORKS, "ppe")]


@pytest.mark.parametrize("budget", [{"flops": 0.5}, {"compression": 4.0}, {"ratio": 0.5}])
def test_what_repairs_has_no_budget_of_its_own(budget: dict[str, float]) -> None:
    with pytest.raises(UserError, match="ppe leaves every token"):
        make("ppe", Budget(**budget).resolve, SHAPE)


@functools.cache
def costs_of(name: str, measure) -> dict[int, float]:
    """What each count of tokens costs that a method offers."""
    method = make(name, None, SHAPE)
    return {tokens: measure(method.with_tokens(tokens)) for tokens in method.offers()}


@pytest.mark.parametrize("flops", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("name", SEARCHED)
def test_flops_are_the_most_that_do_not_cost_more(name: str, flops: float) -> None:
    """Against a search through everything that the method offers, its own passes and its own arithmetic counted."""
    costs = costs_of(name, relative_flops)
    below = [cost for cost in costs.values() if cost <= flops]
    try:
        tokens = make(name, Budget(flops=flops).resolve, SHAPE).tokens
    except UserError as error:  # none is so cheap, or none so dear: VTW has one offer
        assert (not below or flops > max(costs.values())) and f"flops={flops}: {name} on llava reaches" in str(error)
        return
    cost = relative_flops(make(name, tokens, SHAPE))
    assert cost <= flops * (1 + 1e-9)
    assert cost >= max(below) * (1 - 1e-9), f"{max(below)} can be had, {tokens} tokens cost {cost}"
    assert name not in OWN_PASSES, "its first pass was not counted"


@pytest.mark.parametrize("ratio", [1.5, 4])
@pytest.mark.parametrize("name", NAMES)
def test_compression_is_the_nearest_there_is(name: str, ratio: float) -> None:
    ratios = costs_of(name, compression)
    nearest = min(abs(own - ratio) for own in ratios.values())
    try:
        tokens = make(name, Budget(compression=ratio).resolve, SHAPE).tokens
    except UserError:
        assert not min(ratios.values()) * 0.98 <= ratio <= max(ratios.values()) * 1.02
        return
    assert abs(ratios[tokens] - ratio) <= nearest + 0.01 * ratio


@pytest.mark.parametrize("flops", [0.85, 0.95])
@pytest.mark.parametrize("name", SEARCHED)
def test_what_a_budget_announces_is_what_torch_counts(name: str, flops: float) -> None:
    """The passes of the decoder one by one, those of the method's own among them, and its own arithmetic."""
    backbone = tiny_backbone()
    try:
        method = make(name, Budget(flops=flops).resolve, backbone.shape)
    except UserError as error:  # none, those of two passes, those that keep all before a late layer
        assert "reaches" in str(error) or "divides a grid" in str(error)
        return
    assert relative_flops(method) <= flops * (1 + 1e-9)
    agrees(backbone, method.build().eval(), 64)
