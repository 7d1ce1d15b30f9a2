"""What every method must hold (vtc's own contracts), and what is particular to this one. No weights are needed."""

import pytest
import torch
from my_method import MyMethod

from vtc.engine import compressing
from vtc.testing import CONTRACTS, batch, tiny_backbone

TOKENS = 4


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
def test_contract(contract) -> None:
    contract(tiny_backbone(), lambda backbone, tokens: MyMethod(tokens, backbone.shape), TOKENS)


@pytest.mark.parametrize("quiet", [False, True])
def test_the_largest_are_kept(quiet: bool) -> None:
    backbone = tiny_backbone()
    inputs = batch(backbone)
    norms = [f.norm(dim=-1) for f in backbone.image_features({"pixel_values": inputs["pixel_values"]})]
    with torch.no_grad(), compressing(backbone, MyMethod(TOKENS, backbone.shape, quiet=quiet)) as engine:
        backbone.model(**inputs)
        kept = engine.report.kept
    for row, chosen in enumerate(kept):
        visual = (inputs["input_ids"][row] == backbone.image_token_id).nonzero()[:, 0]
        best = norms[row].topk(TOKENS, largest=not quiet).indices.sort().values
        assert chosen == visual[best].tolist()
