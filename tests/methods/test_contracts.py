"""Every contract of `vtc.testing` over every method × backbone."""

from __future__ import annotations

import pytest
from method_cases import BACKBONES, CASES, Case

from vtc.testing import CONTRACTS


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda c: c.__name__)
@pytest.mark.parametrize(("backbone", "case"), CASES, ids=[f"{b}-{c}" for b, c in CASES])
def test_contract(contract, backbone: str, case: Case) -> None:
    contract(BACKBONES[backbone](), case.make, case.tokens)
