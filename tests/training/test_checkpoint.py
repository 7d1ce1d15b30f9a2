"""Checkpoints: what goes in comes out, and nothing else does."""

import json

import pytest
import torch
from method_cases import pocket

from vtc import checkpoint
from vtc.errors import UserError
from vtc.methods import build


def trained(name="fwd2bot", tokens=4, **options):
    backbone = pocket()
    backbone.name = "pocket"
    method = build(name, tokens, backbone.shape, **options)
    method.attach(backbone)
    return backbone, method


def fill(backbone, method, seed):
    generator = torch.Generator().manual_seed(seed)
    names = [n for n, _ in backbone.model.named_parameters() if "lora_" in n]
    with torch.no_grad():
        for n, p in backbone.model.named_parameters():
            if n in names:
                p.copy_(torch.randn(p.shape, generator=generator))
        for p in method.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return names


MANIFEST = {"backbone": "pocket", "method": "fwd2bot", "tokens": 4}


def test_round_trip(tmp_path):
    backbone, method = trained(rank=4)
    names = fill(backbone, method, 1)
    checkpoint.save(tmp_path / "c", backbone, method, MANIFEST, names)
    other, fresh = trained(rank=4)
    checkpoint.load(tmp_path / "c", other, fresh)
    assert torch.equal(method.summary, fresh.summary)
    mine, theirs = dict(backbone.model.named_parameters()), dict(other.model.named_parameters())
    assert all(torch.equal(mine[n], theirs[n]) for n in names)
    assert not list(tmp_path.glob("*.new")) and not list(tmp_path.glob("*.old"))


def test_refuses_by_name(tmp_path):
    backbone, method = trained(rank=4)
    names = fill(backbone, method, 1)
    checkpoint.save(tmp_path / "c", backbone, method, MANIFEST, names)
    for key, value in (("backbone", "llava15_7b"), ("method", "victor"), ("tokens", 16)):
        (tmp_path / "c" / "manifest.json").write_text(json.dumps(MANIFEST | {key: value}))
        with pytest.raises(UserError, match=f"trained for {key}={value}, not"):
            checkpoint.load(tmp_path / "c", backbone, method)
    (tmp_path / "c" / "manifest.json").write_text("{half")
    with pytest.raises(UserError, match="not readable"):
        checkpoint.load(tmp_path / "c", backbone, method)
    with pytest.raises(UserError, match="no manifest.json"):
        checkpoint.load(tmp_path / "nothing", backbone, method)


def test_weights_that_do_not_fit_the_model(tmp_path):
    backbone, method = trained(rank=4)
    names = fill(backbone, method, 1)
    checkpoint.save(tmp_path / "c", backbone, method, MANIFEST, names)
    other, wider = trained(rank=8)
    with pytest.raises(UserError, match="lora_A"):
        checkpoint.load(tmp_path / "c", other, wider)


def test_one_budget_starts_from_another(tmp_path):
    backbone, method = trained(rank=4)
    names = fill(backbone, method, 1)
    checkpoint.save(tmp_path / "c", backbone, method, MANIFEST, names)
    for tokens in (2, 8):
        other, fresh = trained(tokens=tokens, rank=4)
        before = fresh.summary.detach().clone()
        checkpoint.load(tmp_path / "c", other, fresh, fit=False)
        rows = min(4, tokens)
        assert torch.equal(fresh.summary[:rows], method.summary[:rows])
        assert torch.equal(fresh.summary[rows:], before[rows:])
        with pytest.raises(UserError, match="tokens=4"):
            checkpoint.load(tmp_path / "c", other, fresh)


def test_of_several_processes_the_first_alone_writes_and_all_of_them_gather(tmp_path, monkeypatch):
    """Shards are put together by all processes: none may leave the others waiting."""
    backbone, method = trained(rank=4)
    names = fill(backbone, method, 1)
    asked: list[list[int]] = []

    def whole(parameter):
        asked[-1].append(id(parameter))
        return parameter.detach() + 1

    monkeypatch.setattr(checkpoint, "whole", whole)
    for first in (False, True):
        monkeypatch.setattr(checkpoint, "is_main", lambda first=first: first)
        asked.append([])
        checkpoint.save(tmp_path / "c", backbone, method, MANIFEST, names)
        assert (tmp_path / "c").exists() == first
    assert asked[0] == asked[1] and len(asked[0]) == len(names) + len(list(method.parameters()))
    other, fresh = trained(rank=4)
    checkpoint.load(tmp_path / "c", other, fresh)
    assert torch.equal(fresh.summary, method.summary + 1)
