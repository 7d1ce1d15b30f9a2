"""The conformance suite that a method, ours or a plug-in's, must pass; and tiny backbones to run it on.

`check_compressor("fastv")` says of each contract whether it holds, and of one that is violated the smallest case that
shows it. In a plug-in's own tests:

    import pytest
    from vtc.testing import CONTRACTS, tiny_backbone

    @pytest.mark.parametrize("contract", CONTRACTS, ids=lambda c: c.__name__)
    def test_contract(contract):
        contract(tiny_backbone(), lambda backbone, tokens: MyMethod(tokens, backbone.shape).build(), 4)
"""

from vtc.testing.check import CheckReport, Finding, check_compressor
from vtc.testing.contracts import CONTRACTS
from vtc.testing.models import batch, tiny_backbone

__all__ = ["CONTRACTS", "CheckReport", "Finding", "batch", "check_compressor", "tiny_backbone"]
