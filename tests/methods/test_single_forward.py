"""The single-forward baseline against a tower pass that is written out, with merged weights."""

from __future__ import annotations

import copy

import pytest
import torch
from reference import decoder

from vtc.backbones import adapters, recomputation
from vtc.engine import compressing, encode_images
from vtc.errors import UserError
from vtc.interface import projected_layer
from vtc.methods import build
from vtc.methods.fwd2bot import COMPRESS, GENERATE
from vtc.testing import batch, tiny_backbone
from vtc.testing.runs import instance


def single_forward(backbone, tokens=3, **options):
    return instance(backbone, lambda b, t: build("single_forward", t, b.shape, **{"rank": 4} | options), tokens)


def merged(backbone):
    """A copy of the backbone with the adapters added into the weights, and no peft left in it."""
    plain = copy.deepcopy(backbone)
    for module in list(plain.model.modules()):
        for child, inner in list(module.named_children()):
            if hasattr(inner, "lora_A"):
                (name,) = inner.lora_A
                delta = inner.lora_B[name].weight @ inner.lora_A[name].weight * inner.scaling[name]
                inner.base_layer.weight.data += delta
                setattr(module, child, inner.base_layer)
    return plain


def compressed(plain, summary, pixels):
    """[M, D]: CLIP by hand for one image: CLS, patches, summary tokens; attention of each token to all."""
    tower = plain.vision_tower
    x = torch.cat([tower.embeddings(pixels[None])[0], summary])
    x = tower.pre_layrnorm(x)
    for layer in plain.tower_layers[: projected_layer(plain.shape) + 1]:
        at, y = layer.self_attn, layer.layer_norm1(x)
        q, k, v = (f(y).unflatten(-1, (at.num_heads, -1)).transpose(0, 1) for f in (at.q_proj, at.k_proj, at.v_proj))
        weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + at.out_proj((weights @ v).transpose(0, 1).flatten(1))
        x = x + layer.mlp(layer.layer_norm2(x))
    return plain.projector(x[None])[0, -len(summary) :]


@pytest.mark.parametrize("images", [(1, 1, 1), (2, 0, 1)])
def test_equals_a_pass_of_tower_and_llm_written_out(images) -> None:
    backbone = tiny_backbone()
    backbone.model.double()
    method = single_forward(backbone).double()
    inputs = batch(backbone, images=images)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    with torch.no_grad(), compressing(backbone, method) as engine:
        got = backbone.model(**inputs, position_ids=backbone.positions(inputs)).logits
        assert engine.report.tokens_out == [3 * i for i in images]
    plain, n, image = merged(backbone), backbone.shape.visual_tokens, 0
    for row, count in enumerate(images):
        ids = inputs["input_ids"][row, inputs["attention_mask"][row].bool()]
        first = int((ids == backbone.image_token_id).nonzero()[0]) if count else 0
        with torch.no_grad():
            x = plain.decoder.embed_tokens(ids)
            made_of = [compressed(plain, method.summary, p) for p in inputs["pixel_values"][image : image + count]]
            image += count
            short = torch.cat([x[:first], *made_of, x[first + n * count :]])
            expected = plain.model.lm_head(decoder(plain, short, torch.arange(len(short))))
        after = len(ids) - first - n * count
        worst = (got[row, -after:] - expected[-after:]).abs().max()
        assert worst < 1e-6  # CLIP's softmax, as the LLM's, is float32 in places


def test_embeddings_of_images_are_those_of_the_pass_that_answers() -> None:
    backbone = tiny_backbone()
    method = single_forward(backbone)
    pixels = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        together = encode_images(backbone, method, pixels)
        for row in range(3):
            alone = encode_images(backbone, method, pixels[row : row + 1])[0]
            assert (together[row] - alone).abs().max() < 1e-4
        method.summary.data.neg_()
        assert (encode_images(backbone, method, pixels) - together).abs().max() > 1e-3


def test_the_patches_reach_the_llm_through_the_summary_tokens_alone() -> None:
    backbone = tiny_backbone()
    method, seen = single_forward(backbone), []
    hook = backbone.projector.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    with torch.no_grad(), compressing(backbone, method):
        backbone.model(**batch(backbone))
    hook.remove()
    assert seen == [(3, 3, backbone.shape.width)]  # the projector works on three tokens an image, not on sixteen


def test_both_adapters_and_the_summary_tokens_learn_and_nothing_else_the_same_under_checkpointing() -> None:
    backbone = tiny_backbone()
    backbone.projector.requires_grad_(False)
    method = single_forward(backbone).train()
    backbone.model.train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            recomputation.start(backbone.model, use_reentrant=False)
        backbone.model.zero_grad()
        method.zero_grad()
        inputs = batch(backbone)
        with compressing(backbone, method):
            loss = backbone.model(**inputs, labels=inputs["input_ids"], use_cache=False).loss
        loss.backward()
        found = {n: p.grad for n, p in backbone.model.named_parameters() if p.grad is not None}
        gradients.append({n: g.clone() for n, g in found.items()} | {"summary": method.summary.grad.clone()})
    lora = {n for n, _ in backbone.model.named_parameters() if ".lora_" in n}
    assert set(gradients[0]) == lora | {"summary"}
    assert any(n.startswith("model.vision_tower") and f".{COMPRESS}." in n for n in lora)
    assert any(n.startswith("model.language_model") and f".{GENERATE}." in n for n in lora)
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        assert (gradient - gradients[1][name]).abs().max() < 1e-6, name


def test_parameters_are_counted_as_injected_and_none_is_idle() -> None:
    backbone = tiny_backbone()
    method = build("single_forward", 4, backbone.shape, rank=4)
    method.attach(backbone)
    lora = sum(p.numel() for n, p in backbone.model.named_parameters() if ".lora_" in n)
    assert method.extra_parameters == lora + 4 * backbone.shape.vision.width
    last = backbone.tower_layers[projected_layer(backbone.shape) + 1]
    assert not adapters.tuner_layers(last)  # its output is read by nobody
    build("single_forward", 3, backbone.shape, rank=4).attach(backbone)
    with pytest.raises(UserError, match="vision tower already has adapters"):
        build("single_forward", 4, backbone.shape, rank=8).attach(backbone)


def test_outside_the_tower_is_the_plain_one() -> None:
    backbone = tiny_backbone()
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before = torch.stack(backbone.core.get_image_features(pixels).pooler_output)
        method = single_forward(backbone)
        with compressing(backbone, method):
            assert torch.stack(backbone.core.get_image_features(pixels).pooler_output)[:, 3:].abs().max() == 0
        assert torch.equal(torch.stack(backbone.core.get_image_features(pixels).pooler_output), before)
        assert not any(m.active_adapters for m in adapters.tuner_layers(backbone.vision_tower))


def test_more_tokens_than_an_image_has_places_for_are_refused() -> None:
    backbone = tiny_backbone()
    assert build("single_forward", None, backbone.shape).tokens == 16
    with pytest.raises(UserError, match="tokens=17"):
        build("single_forward", 17, backbone.shape)
    with pytest.raises(UserError, match="method.rank=0"):
        build("single_forward", 4, backbone.shape, rank=0)
