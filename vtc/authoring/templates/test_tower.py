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


def test_the_longest_keys_are_kept() -> None:
    """By the keys that a hook reads in the layer of the tower that is projected."""
    backbone, keys = tiny_backbone(), []
    inputs = batch(backbone)
    layers = [m for n, m in backbone.model.named_modules() if n.endswith("self_attn.k_proj") and "vision" in n]
    hook = layers[-1 + backbone.model.config.vision_feature_layer + 1].register_forward_hook(
        lambda *a: keys.append(a[2])
    )
    with torch.no_grad(), compressing(backbone, MyMethod(TOKENS, backbone.shape)) as engine:
        backbone.model(**inputs)
    hook.remove()
    for row, chosen in enumerate(engine.report.kept):
        visual = (inputs["input_ids"][row] == backbone.image_token_id).nonzero()[:, 0]
        best = keys[0][row, 1:].norm(dim=-1).topk(TOKENS).indices.sort().values  # the first is CLS
        assert chosen == visual[best].tolist()
