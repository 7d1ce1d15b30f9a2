"""Every contract of `vtc.testing` over every method × backbone."""

from __future__ import annotations

from functools import lru_cache

import pytest
from method_cases import BACKBONES, CASES, CHOOSING, Case

from vtc.backbones.base import Backbone
from vtc.registry import parts
from vtc.testing import CONTRACTS


@lru_cache(maxsize=1)
def kept_backbone(name: str) -> Backbone:
    """One for all contracts of the methods that add nothing to a backbone; `everything_is_removed` holds them to it."""
    return BACKBONES[name]()


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda c: c.__name__)
@pytest.mark.parametrize(("backbone", "case"), CASES, ids=[f"{b}-{c}" for b, c in CASES])
def test_contract(contract, backbone: str, case: Case) -> None:
    # Training leaves a model in training mode.
    alone = contract.__name__ == "gradients_reach_everything" or not {*parts(case.name).values()} <= CHOOSING
    contract(BACKBONES[backbone]() if alone else kept_backbone(backbone), case.make, case.tokens)
