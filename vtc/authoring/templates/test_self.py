"""What every method must hold (vtc's own contracts), and what is particular to this one. No weights are needed."""

import pytest
import torch
from my_method import MyMethod

from vtc.engine import compressing
from vtc.testing import CONTRACTS, batch, tiny_backbone

TOKENS = 4


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
def test_contract(contract) -> None:
    contract(tiny_backbone(), lambda backbone, tokens: MyMethod(tokens, backbone.shape).build(), TOKENS)


def test_the_llm_s_own_states_take_the_image_s_place() -> None:
    """By the plain model: the image's embeddings with the learned tokens behind them, in one pass."""
    backbone, seen = tiny_backbone(), []
    method = MyMethod(TOKENS, backbone.shape).build()
    inputs = batch(backbone)
    (features, *_) = backbone.image_features({"pixel_values": inputs["pixel_values"]})
    reduce = method.reduce
    method.reduce = lambda *args: seen.append(reduce(*args)) or seen[-1]
    with torch.no_grad():
        alone = backbone.decoder(inputs_embeds=torch.cat([features, method.summary])[None]).last_hidden_state
        with compressing(backbone, method):
            backbone.model(**inputs)
    there = seen[0].hidden[0][seen[0].visual[0]]
    torch.testing.assert_close(there, alone[0, -TOKENS:], atol=1e-4, rtol=1e-4)
