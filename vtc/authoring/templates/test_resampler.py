"""What every method must hold (vtc's own contracts), and what is particular to this one. No weights are needed."""

import pytest
import torch
from my_method import MyMethod

from vtc.interface import Context
from vtc.testing import CONTRACTS, tiny_backbone

TOKENS = 4


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
def test_contract(contract) -> None:
    contract(tiny_backbone(), lambda backbone, tokens: MyMethod(tokens, backbone.shape).build(), TOKENS)


def test_each_token_is_a_mean_weighted_by_attention() -> None:
    """In float64, token by token."""
    method = MyMethod(TOKENS, tiny_backbone().shape).build().double()
    features = torch.randn(2, 16, 32, dtype=torch.float64)
    out = method(features, Context(method.shape))
    for image in range(2):
        for query, token in zip(method.queries, out[image], strict=True):
            weights = torch.stack([(query * feature).sum() / 32**0.5 for feature in features[image]]).exp()
            torch.testing.assert_close(token, (weights[:, None] * features[image]).sum(0) / weights.sum())
