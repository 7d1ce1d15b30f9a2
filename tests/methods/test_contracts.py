"""Every contract of `vtc.testing` over every method × backbone."""

from __future__ import annotations

from functools import lru_cache

import pytest
from method_cases import AFTERWARDS, BACKBONES, CASES, CHOSEN, Case, attaches, held

from vtc.backbones.base import Backbone
from vtc.testing import CONTRACTS


@lru_cache(maxsize=1)
def kept_backbone(name: str) -> Backbone:
    """One for all contracts of the methods that add nothing to a backbone; `everything_is_removed` holds them to it."""
    return BACKBONES[name]()


HELD = [(c, b, m) for b, m in CASES for c in CONTRACTS if held(c.__name__, b, m)]


@pytest.mark.parametrize(("contract", "backbone", "case"), HELD, ids=[f"{b}-{m}-{c.__name__}" for c, b, m in HELD])
def test_contract(contract, backbone: str, case: Case) -> None:
    # Training leaves a model in training mode.
    alone = attaches(case.name) or contract.__name__ == "gradients_reach_everything"
    contract(BACKBONES[backbone]() if alone else kept_backbone(backbone), case.make, case.tokens)


def test_nothing_is_held_to_less_than_it_must_be(monkeypatch) -> None:
    """Every contract of every method on the first backbone; on each other one those of the LLM by `random`."""
    names = {c.__name__ for c in CONTRACTS}
    assert names > AFTERWARDS and "random" not in CHOSEN
    for backbone in BACKBONES:
        cases = {m.name for b, m in CASES if b == backbone}
        assert backbone == "siglip" or cases & CHOSEN == set() or "random" in cases, backbone
        for name in cases:
            run = {c.__name__ for c, b, m in HELD if b == backbone and m.name == name}
            assert run >= names - AFTERWARDS, (backbone, name)
            if backbone == "gqa" or name in ("none", "random", "fastv", "fwd2bot") or backbone in ("pocket", "mha"):
                assert run == names or name in CHOSEN and backbone != "gqa", (backbone, name)
    monkeypatch.setenv("VTC_EVERY_CONTRACT", "1")
    assert all(held(c.__name__, b, m) for b, m in CASES for c in CONTRACTS)
