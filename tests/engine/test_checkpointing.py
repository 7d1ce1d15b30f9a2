"""Gradient checkpointing in a real training pass: the same gradients, in float64, whatever the method does meanwhile.

What could go wrong: a layer recomputed in the backward pass under another adapter than it ran under, among other
tokens, or not at all.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vtc.backbones import adapters, recomputation
from vtc.backbones.base import Backbone
from vtc.engine import compressing
from vtc.interface import Captions, Compressor, SelfCompressor
from vtc.methods import build
from vtc.testing import tiny_backbone
from vtc.testing.models import packed

CASES: dict[str, tuple[str, int | None, dict[str, Any]]] = {
    "fwd2bot": ("fwd2bot", 4, {"rank": 4}),
    "fwd2bot-dropout": ("fwd2bot", 4, {"rank": 4, "dropout": 0.3}),
    "fwd2bot-bidirectional": ("fwd2bot", 4, {"rank": 4, "bidirectional": True}),
    "fwd2bot-single": ("fwd2bot", 4, {"rank": 4, "adapters": "single"}),
    "fwd2bot-none": ("fwd2bot", 4, {"adapters": "none"}),
    "single_forward": ("single_forward", 4, {"rank": 4}),
    "victor": ("victor", 4, {"layer": 2, "layer_scale": "none"}),
    "victor-last": ("victor", 4, {"layer": 2, "layer_scale": "none", "keep_last": True}),
    "llavolta": ("llavolta", None, {"scheme": [{"layer": 2, "stride": 4, "share": 1.0}], "layer_scale": "none"}),
    "fastv": ("fastv", 4, {"layer": 2, "layer_scale": "none"}),
}


def trained(case: str) -> tuple[Backbone, Compressor, dict[str, torch.nn.Parameter]]:
    """A backbone and a method in training mode, in float64, and what learns; nothing at its initial value."""
    name, tokens, options = CASES[case]
    backbone = tiny_backbone()
    method = build(name, tokens, backbone.shape, **options)
    method.attach(backbone)
    backbone.model.double().train()
    method.double().train()
    method.set_stage(0, 10)
    if not adapters.tuner_layers(backbone.decoder):
        backbone.decoder.requires_grad_(True)
    backbone.vision_tower.requires_grad_(False)
    for n, p in backbone.vision_tower.named_parameters():
        p.requires_grad_(".lora_" in n)
    generator = torch.Generator().manual_seed(7)
    learns = {n: p for n, p in backbone.model.named_parameters() if p.requires_grad}
    learns |= {f"method.{n}": p for n, p in method.named_parameters()}
    with torch.no_grad():
        for n, p in learns.items():
            if "lora_B" in n or n.startswith("method."):
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return backbone, method, learns


def gradients(backbone: Backbone, method: Compressor, learns: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    """Of the answers' loss and the method's own, the backward pass outside the engine, as in training."""
    backbone.model.zero_grad()
    method.zero_grad()
    inputs, blocks = packed(backbone)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    captions = torch.arange(20, 28).view(2, 4)
    torch.manual_seed(3)  # of dropout
    with compressing(backbone, method) as engine, engine.blocks(blocks):
        loss = backbone.model(**inputs, use_cache=False).loss
    if isinstance(method, SelfCompressor):
        loss = loss + sum(method.losses(engine.context, Captions(captions, torch.ones_like(captions))).values())
    loss.backward()
    assert all(p.grad is not None for p in learns.values()), [n for n, p in learns.items() if p.grad is None]
    return {n: p.grad.clone() for n, p in learns.items() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_plain_pass(case: str, reentrant: bool) -> None:
    backbone, method, learns = trained(case)
    plain, runs = gradients(backbone, method, learns), [0]
    hook = backbone.decoder.layers[-1].self_attn.q_proj.register_forward_hook(lambda *_: runs.append(1))
    recomputation.start(backbone.model, use_reentrant=reentrant)
    saving = gradients(backbone, method, learns)
    hook.remove()
    passes = 3 if isinstance(method, SelfCompressor) else 1  # of image, caption and questions
    assert sum(runs) == 2 * passes  # each layer ran again in the backward pass
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0, name
        assert (gradient - saving[name]).abs().max() < 1e-10 * max(1.0, float(gradient.abs().max())), name
