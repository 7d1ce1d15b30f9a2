"""What every method must hold (vtc's own contracts), and what is particular to this one. No weights are needed."""

import pytest
import torch
from my_method import MyMethod

from vtc.interface import VISUAL, Context, TokenSequence
from vtc.testing import CONTRACTS, tiny_backbone

TOKENS = 4


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
def test_contract(contract) -> None:
    contract(tiny_backbone(), lambda backbone, tokens: MyMethod(tokens, backbone.shape), TOKENS)


def test_runs_of_neighbours_are_averaged() -> None:
    """Six visual tokens become four: 0 1, 2, 3 4, 5."""
    shape, hidden = tiny_backbone().shape, torch.randn(1, 6, 32)
    place, zero = torch.arange(6)[None], torch.zeros(1, 6, dtype=torch.long)
    tokens = TokenSequence(hidden, zero == 0, place[None], zero + VISUAL, place, zero, zero, compact=True)
    merged = MyMethod(TOKENS, shape).reduce(tokens, 0, Context(shape))
    runs = [hidden[0, run].mean(0) for run in ([0, 1], [2], [3, 4], [5])]
    torch.testing.assert_close(merged.hidden[0], torch.stack(runs))
