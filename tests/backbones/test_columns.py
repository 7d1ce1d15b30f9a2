"""Weights by columns are the same weights: what is computed, stored and learned stays as it was."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vtc import checkpoint
from vtc.backbones.columns import by_columns
from vtc.configuration import parse
from vtc.methods import build
from vtc.testing import batch, tiny_backbone

POCKET = ["backbone=pocket", "method=victor", "tokens=16"]


def lies_by_columns(weight: torch.Tensor) -> bool:
    return weight.stride() == (1, weight.shape[0])


def test_outputs_and_weights_stay():
    backbone = tiny_backbone()
    inputs = batch(backbone, [2, 4], [4, 4], [1, 1])
    state = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    with torch.inference_mode():
        before = backbone.model(**inputs).logits
        by_columns(backbone.model)
        after = backbone.model(**inputs).logits
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    for name, value in backbone.model.state_dict().items():
        assert torch.equal(value, state[name]), name
    linear = [module for module in backbone.decoder.layers.modules() if isinstance(module, nn.Linear)]
    assert linear and all(lies_by_columns(module.weight) for module in linear)


def test_a_table_that_is_looked_up_stays_by_rows():
    """A word's vector is one piece of memory there, also where the output embedding is the same tensor."""
    model = nn.ModuleDict({"words": nn.Embedding(7, 3), "head": nn.Linear(3, 7, bias=False)})
    model["head"].weight = model["words"].weight
    by_columns(model)
    assert model["words"].weight.stride() == (3, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_stay_by_rows(dtype):
    linear = nn.Linear(3, 7).to(dtype)
    by_columns(linear)
    assert linear.weight.stride() == (3, 1)


def test_what_answers_has_them_and_what_is_trained_has_not(tmp_path):
    job = parse(POCKET)
    backbone, method = job.load()
    layer = backbone.decoder.layers[0].mlp.up_proj
    assert lies_by_columns(getattr(layer, "base_layer", layer).weight)
    names = [name for name, _ in backbone.model.named_parameters()]
    folder = checkpoint.save(tmp_path / "saved", backbone, method, {"method": method.name}, names)
    saved = load_file(folder / checkpoint.WEIGHTS)
    for name, parameter in backbone.model.named_parameters():
        assert torch.equal(saved[f"backbone.{name}"], parameter), name

    learning, _ = job.load(trained=False)
    assert not lies_by_columns(learning.decoder.layers[0].mlp.up_proj.weight)


def test_gradients_stay():
    linear, x = nn.Linear(16, 24), torch.randn(5, 16)
    linear(x).square().sum().backward()
    expected = linear.weight.grad
    linear.weight.grad = None
    by_columns(linear)
    linear(x).square().sum().backward()
    torch.testing.assert_close(linear.weight.grad, expected)


def test_adapters_too():
    backbone = tiny_backbone()
    method = build("fwd2bot", 2, backbone.shape)
    method.attach(backbone)
    by_columns(backbone.model)
    adapters = [m for n, m in backbone.model.named_modules() if n.endswith((".lora_A.default", ".lora_B.default"))]
    for module in adapters:
        assert lies_by_columns(module.weight) or 1 in module.weight.shape
