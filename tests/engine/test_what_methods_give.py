"""A method that gives what can't be used is refused by its name, and no sample is blamed for it."""

from __future__ import annotations

import pytest
import torch

from vtc.engine import compressing
from vtc.errors import NotFinite, SampleError, UserError
from vtc.interface import Resampler, TokenMerger, TokenPruner, TowerPruner, VideoPruner
from vtc.testing import CONTRACTS, batch, tiny_backbone
from vtc.testing.runs import generation

TOKENS = 4


def pruner(score, base=TokenPruner, layer=0):
    """A method that scores tokens as `score(tokens)` does."""

    class Scored(base):
        name = "scored"

        def score(self, tokens, context):
            return score(tokens)

        def rate(self, tower):
            return score(tower)

        def assign(self, tokens, context):
            return score(tokens)

        def forward(self, features, context):
            return score(features)

    Scored.layer = layer
    return Scored


def refusal(method, kind, words: str, backbone=None) -> str:
    backbone = backbone or tiny_backbone()
    built = method(TOKENS, backbone.shape)
    inputs = batch(backbone, images=(1, 2, 1))
    with compressing(backbone, built), torch.no_grad():
        for run in (lambda: backbone.model(**inputs), lambda: generation(backbone, inputs)):
            with pytest.raises(kind, match=words) as caught:
                run()
            assert isinstance(caught.value, SampleError) == (kind is NotFinite)
    return str(caught.value)


SHAPES = {
    "one dimension": (lambda t: torch.ones(t.mask.shape[1]), r"shape \[\d+\]"),
    "images, not rows": (lambda t: torch.ones(t.images[0].shape), r"shape \[4, 16\]"),
    "a token too few": (lambda t: torch.ones(t.mask[:, 1:].shape), r"shape \[3, \d+\]"),
    "a width too": (lambda t: t.hidden, r"shape \[3, \d+, 32\]"),
    "another row's": (lambda t: torch.ones(t.mask[:1].shape), r"shape \[1, \d+\]"),
    "a number": (lambda t: 3.0, "type float"),
    "nothing": (lambda t: None, "type NoneType"),
    "a list": (lambda t: t.mask.tolist(), "type list"),
}


@pytest.mark.parametrize("base", [TokenPruner, VideoPruner])
@pytest.mark.parametrize("name", SHAPES)
def test_scores_of_another_shape(name: str, base) -> None:
    score, shape = SHAPES[name]
    refusal(pruner(score, base), UserError, rf"^method=scored: gives a score of {shape}; needed: .*\[3, \d+\]$")


def spoiled(t, value: float, where) -> torch.Tensor:
    score = torch.rand(t.mask.shape)
    score[where(t)] = value
    return score


ALL = {"all": lambda t: t.mask, "visual": lambda t: t.visual, "one": lambda t: t.visual & (t.visual.cumsum(1) == 3)}


@pytest.mark.parametrize("base", [TokenPruner, VideoPruner])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ALL)
@pytest.mark.parametrize("layer", [0, 2])
def test_scores_that_are_no_numbers(where: str, value: float, base, layer: int) -> None:
    refusal(
        pruner(lambda t: spoiled(t, value, ALL[where]), base, layer),
        NotFinite,
        "^method=scored: gives a score that isn't finite",
    )


def test_scores_that_nobody_reads_may_be_anything() -> None:
    backbone = tiny_backbone()
    method = pruner(lambda t: spoiled(t, float("nan"), lambda t: ~t.visual))(TOKENS, backbone.shape)
    with compressing(backbone, method) as engine, torch.no_grad():
        backbone.model(**batch(backbone))
        assert engine.report.tokens_out == [TOKENS] * 3


def test_rates_of_the_tower() -> None:
    bad = float("nan")
    refusal(
        pruner(lambda t: torch.ones(16), TowerPruner), UserError, r"gives a rate of shape \[16\]; needed: .*\[4, 16\]"
    )
    refusal(pruner(lambda t: torch.ones(4, 17), TowerPruner), UserError, r"gives a rate of shape \[4, 17\]")
    refusal(
        pruner(lambda t: torch.full((4, 16), bad), TowerPruner),
        NotFinite,
        "method=scored: gives a rate that isn't finite",
    )


def test_groups_and_weights() -> None:
    zeros = torch.zeros(4, 16, dtype=torch.long)
    refusal(
        pruner(lambda t: (zeros[0], None), TokenMerger), UserError, r"gives groups of shape \[16\]; needed.*\[4, 16\]"
    )
    refusal(pruner(lambda t: (zeros[:, 1:], None), TokenMerger), UserError, r"gives groups of shape \[4, 15\]")
    refusal(pruner(lambda t: (zeros, zeros[0]), TokenMerger), UserError, r"gives weights of shape \[16\]")


def test_new_tokens() -> None:
    words = r"method=scored: gives new tokens of shape \[4, {}\]; needed: .*\[4, any, 32\]"
    refusal(pruner(lambda f: f[:, 0], Resampler), UserError, words.format("32"))
    refusal(pruner(lambda f: f[..., :30], Resampler), UserError, words.format("16, 30"))


def test_a_broken_model_is_named_before_the_method_whose_scores_it_spoils() -> None:
    backbone = tiny_backbone()
    with torch.no_grad():
        backbone.projector.linear_1.weight[0] = float("nan")
    method = pruner(lambda t: t.hidden.sum(-1))(TOKENS, backbone.shape)
    with compressing(backbone, method), torch.no_grad(), pytest.raises(NotFinite, match="linear_1 isn't finite"):
        generation(backbone, batch(backbone))


FAULTS = {
    "nothing is a number": lambda t: torch.full(t.mask.shape, float("nan")),
    "rows are exchanged": lambda t: t.hidden.norm(dim=-1).roll(1, 0),
    "the position decides": lambda t: torch.rand(t.mask.shape),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_contracts_find_it(fault: str) -> None:
    method, failed = pruner(FAULTS[fault]), []
    for contract in CONTRACTS:
        try:
            contract(tiny_backbone(), lambda backbone, tokens: method(tokens, backbone.shape), TOKENS)
        except (AssertionError, UserError):
            failed.append(contract.__name__)
    assert failed
