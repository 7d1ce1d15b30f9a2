"""What is wrong with a method is said by the contract that is about it: one broken method a breakage."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from vtc.cli import main
from vtc.engine import compressing
from vtc.engine.cache import CACHE
from vtc.errors import MethodFailure, UserError
from vtc.interface import Resampler, TokenPruner, TowerPruner, keep_best
from vtc.testing import CheckReport, batch, check_compressor, tiny_backbone
from vtc.testing.contracts import CONTRACTS
from vtc.testing.models import Extent, extent, rows

TOKENS = 5


class Loud(TokenPruner):
    """A method that is right: what the others are, but for their mistake."""

    name = "loud"

    def score(self, tokens, context):
        return tokens.hidden.float().norm(dim=-1)


class Unsorted(Loud):
    """Puts what it keeps in the order of its scores."""

    def reduce(self, tokens, layer, context):
        out = super().reduce(tokens, layer, context)
        order = torch.arange(out.mask.shape[1]).expand_as(out.mask).clone()
        for row in range(len(order)):
            there = out.visual[row].nonzero()[:, 0]
            order[row, there] = there.flip(0)
        return out._take(order, out.mask.gather(1, order), out.position, out.shift)


class OneTooMany(Loud):
    def reduce(self, tokens, layer, context):
        return keep_best(tokens, self.score(tokens, context), tokens.images[1].sum(1).clamp(max=self.tokens + 1))


class Remembers(Loud):
    """Its scores go on from those of the calls before."""

    seen = 0.0

    def score(self, tokens, context):
        score = super().score(tokens, context)
        self.seen = self.seen + score.max().item()
        return (score * (1 + self.seen)).sin()


class Neighbours(Loud):
    """What is kept of a row depends on the others of its batch."""

    def score(self, tokens, context):
        return (tokens.hidden.float() - tokens.hidden.float().mean((0, 1))).norm(dim=-1)


class Padded(Loud):
    """Takes padding for tokens: the place in the batch, not in the row."""

    def score(self, tokens, context):
        place = torch.arange(tokens.mask.shape[1]).expand_as(tokens.mask)
        return ((place * 7) % 11).float()


class Caching(Loud):
    """Holds on to the model, and changes what its layers have cached."""

    def attach(self, backbone):
        decoder = backbone.decoder

        def forget(layer, args, kwargs):
            cache = kwargs.get(CACHE)
            if cache is not None and args[0].shape[1] == 1 and cache.layers[0].get_seq_length():
                cache.layers[0].values.mul_(0.5)

        if not decoder.layers[0]._forward_pre_hooks:
            decoder.layers[0].register_forward_pre_hook(forget, with_kwargs=True)


class Worst(Loud):
    def reduce(self, tokens, layer, context):
        if tokens.fits(self.tokens):
            return tokens
        return keep_best(tokens, -self.score(tokens, context), tokens.images[1].sum(1).clamp(max=self.tokens))


class WorstPatches(TowerPruner):
    name = "worst_patches"

    def rate(self, tower):
        return tower.patch_keys(self.tower_layer).norm(dim=-1)

    def condense(self, tower, count):
        out = super().condense(tower, count)
        rates = -self.rate(tower)
        best = torch.zeros_like(out.kept).scatter(1, rates.topk(count).indices, True)
        return dataclasses.replace(out, kept=best)


class Masking(Loud):
    """Hides tokens and leaves them where they are."""

    def reduce(self, tokens, layer, context):
        kept = super().reduce(dataclasses.replace(tokens, compact=False), layer, context)
        hidden = torch.stack([~torch.isin(o, k) for o, k in zip(tokens.origin, kept.origin, strict=True)])
        return dataclasses.replace(tokens, mask=tokens.mask & ~(hidden & tokens.visual))


class NotANumber(Loud):
    def score(self, tokens, context):
        return super().score(tokens, context) * float("nan")


class NotANumberMade(Resampler):
    name = "nan_made"

    def forward(self, features, context):
        return features[:, : self.tokens] / 0.0


class WrongShape(Loud):
    def score(self, tokens, context):
        return super().score(tokens, context)[:, :-1]


class Raising(Loud):
    def score(self, tokens, context):
        return super().score(tokens, context) / (1 // 0)


class Asserting(Loud):
    def score(self, tokens, context):
        raise AssertionError("my own")


class Elsewhere(Loud):
    def score(self, tokens, context):
        return super().score(tokens, context).to("meta")


class Casting(Loud):
    def reduce(self, tokens, layer, context):
        out = super().reduce(tokens, layer, context)
        return dataclasses.replace(out, hidden=out.hidden.double())


class Reading(Loud):
    """Looks at the words behind the image, and doesn't say so."""

    def score(self, tokens, context):
        asked = (tokens.hidden * (context.prompt(tokens) & tokens.mask)[..., None]).sum(1, keepdim=True)
        return (tokens.hidden * asked).sum(-1)


BREAKAGES = {
    Unsorted: ("kept_are_sorted_and_unique", "not in the order of the sequence"),
    OneTooMany: ("budget_is_exact", "visual tokens are left, needed"),
    Remembers: ("calls_are_independent", "after another batch the same batch gives other logits"),
    Neighbours: ("batch_equals_singles", "logits differ by"),
    Padded: ("padding_changes_nothing", "behind 7 columns of padding"),
    Caching: ("cached_equals_uncached", "from the cache: logits differ by"),
    Worst: ("the_best_are_kept", "^(row|picture) .*the best by its scores are"),
    WorstPatches: ("the_best_are_kept", "^(row|picture) .*the best by its rates are"),
    Masking: ("budget_is_exact", "what is masked isn't dropped"),
    NotANumber: ("it_runs", "method=loud: gives a score that isn't finite"),
    NotANumberMade: ("it_runs", "aren't finite|isn't finite"),
    WrongShape: ("it_runs", r"method=loud: gives a score of shape \[1, \d+\]; needed: a tensor of shape"),
    Raising: ("it_runs", r"method=loud fails: ZeroDivisionError: .* \(test_check.py, line \d+, in score\)"),
    Asserting: ("it_runs", r"method=loud fails: AssertionError: my own \(test_check.py, line \d+, in score\)"),
    Elsewhere: ("devices_and_dtypes_stay", "score gives tensors on meta; the tokens are on cpu"),
    Casting: ("devices_and_dtypes_stay", "reduce gives hidden states of torch.float64"),
    Reading: ("the_question_is_declared", "of one image, one question leaves"),
}


def test_a_method_that_is_right_holds_all_contracts() -> None:
    report = check_compressor(Loud)
    assert report.passed and len(report.findings) == len(CONTRACTS) and report.tokens == TOKENS
    assert {finding.state for finding in report.findings} == {"holds", "does not apply"}
    assert "Loud" not in str(report) and "loud tokens=5 on a tiny llava (16 visual tokens, 4 layers)" in str(report)


@pytest.mark.parametrize("broken", BREAKAGES, ids=lambda cls: cls.__name__)
def test_a_breakage_is_caught_by_the_contract_about_it(broken) -> None:
    name, words = BREAKAGES[broken]
    contracts = [contract for contract in CONTRACTS if contract.__name__ in (name, "it_runs")]
    report = check_compressor(broken, tokens=TOKENS, contracts=contracts)
    finding = next(finding for finding in report.findings if finding.contract == name)
    assert finding.state == "violated" and name in report.violated and not report.passed

    assert re.search(words, finding.violation), finding.violation
    assert "\n" not in finding.violation and "tokens=" in finding.case
    assert finding.read == f"docs/contracts.md#{name}" and finding.violation in str(report)


def test_one_that_does_not_run_is_told_once() -> None:
    report = check_compressor(Raising, tokens=TOKENS)
    assert report.violated[0] == "it_runs" and {f.state for f in report.findings[2:]} == {"not run"}


def test_the_smallest_case_is_small() -> None:
    """One too many shows with one row, its image, one token; a leak between rows needs two."""
    wanted = {OneTooMany: ("budget_is_exact", "1 row (1 words, 1 image, 1 words), tokens=1"),
              Neighbours: ("batch_equals_singles", "2 rows (")}  # fmt: skip
    for broken, (name, case) in wanted.items():
        contracts = [contract for contract in CONTRACTS if contract.__name__ == name]
        (finding,) = check_compressor(broken, tokens=TOKENS, contracts=contracts).findings
        assert finding.case.startswith(case), finding.case


def test_an_extent_says_what_was_made() -> None:
    backbone = tiny_backbone()
    with extent(Extent((0, 2), 1)) as limits:
        made = rows(backbone, images=(1, 2, 0))
    assert len(made) == 2 and str(limits) == "2 rows (1 words, 1 image, 1 words; 1 words, 0 images, 1 words)"
    assert len(rows(backbone)) == 3, "outside everything is made"


# ---------------------------------------------------------------------- from the command line
def test_the_action_prints_each_contract(capsys) -> None:
    assert main(["action=check", "method=random", "backbone=qwen2vl_2b"]) == 0
    out = capsys.readouterr().out
    assert "random tokens=5 on a tiny qwen2_vl" in out and f"{len(CONTRACTS)} contracts: " in out


def test_the_action_names_what_is_violated(capsys, monkeypatch) -> None:
    from vtc.registry import methods

    monkeypatch.setitem(methods._registered, "loud", OneTooMany)
    monkeypatch.setattr("vtc.testing.check.CONTRACTS", CONTRACTS[:3])
    assert main(["action=check", "method=loud", "tokens=4"]) == 2
    streams = capsys.readouterr()
    assert "action=check, method=loud: " in streams.err and "budget_is_exact" in streams.err
    assert "FAIL  budget_is_exact" in streams.out and "smallest  1 row" in streams.out


def test_what_cannot_be_checked_is_refused() -> None:
    with pytest.raises(UserError, match="backbone.family=mine: vtc has no tiny model of it"):
        check_compressor("fastv", "mine")
    with pytest.raises(UserError, match="method=fastvv: unknown"):
        check_compressor("fastvv")
    with pytest.raises(UserError, match="qwen2_vl|patch"):
        check_compressor("tome", "qwen2_vl")


def test_a_method_that_fails_is_named_wherever_it_runs() -> None:
    backbone = tiny_backbone()
    with (
        pytest.raises(
            MethodFailure, match=r"method=loud fails: ZeroDivisionError.*in score\); see action=check"
        ) as error,
        compressing(backbone, Raising(TOKENS, backbone.shape)),
    ):
        backbone.model(**batch(backbone))
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    assert isinstance(check_compressor(Loud, contracts=CONTRACTS[:1]), CheckReport)
