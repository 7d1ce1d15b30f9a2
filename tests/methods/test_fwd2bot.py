"""Fwd2Bot against its two passes, written out with merged weights, and its contrastive loss against a double loop."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from reference import decoder, embedded

from vtc.backbones import adapters
from vtc.engine import compressing, embed_images, embed_texts, encode_images, encode_texts
from vtc.errors import UserError
from vtc.interface import Captions
from vtc.methods import build
from vtc.methods.fwd2bot import COMPRESS, GENERATE, SHARED, info_nce
from vtc.testing import batch, tiny_backbone
from vtc.testing.runs import instance


def merged(backbone, name: str):
    """A copy of the backbone with one adapter added into its weights, and no peft left in it."""
    plain = copy.deepcopy(backbone)
    for layer in plain.decoder.layers:
        for part in (layer.self_attn, layer.mlp):
            for child, module in list(part.named_children()):
                if hasattr(module, "lora_A"):
                    delta = module.lora_B[name].weight @ module.lora_A[name].weight * module.scaling[name]
                    module.base_layer.weight.data += delta
                    setattr(part, child, module.base_layer)
    return plain


@pytest.mark.parametrize(
    "options",
    [{}, {"bidirectional": True}, {"adapters": "single"}, {"adapters": "none"}, {"hide": [0]}, {"hide": [0, 1]}],
    ids=str,
)
def test_equals_two_passes_with_merged_weights(options: dict) -> None:
    """Hidden summary tokens (figure 6) leave the positions of all others as they were."""
    backbone, bidirectional = tiny_backbone(), options.get("bidirectional", False)
    method = instance(backbone, lambda b, t: build("fwd2bot", t, b.shape, rank=4, **options), 3)
    seen = [i for i in range(3) if i not in options.get("hide", ())]
    assert method.layer_tokens() == [len(seen)] * backbone.shape.depth
    inputs = batch(backbone)
    with torch.no_grad(), compressing(backbone, method) as engine:
        got = backbone.model(**inputs, position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)).logits
        e = encode_images(backbone, method, inputs["pixel_values"])
    assert engine.report is not None and engine.report.layers == [[len(seen)] * 3] * backbone.shape.depth
    names = {"single": (SHARED, SHARED), "none": (None, None)}.get(options.get("adapters"), (COMPRESS, GENERATE))
    first_pass, second_pass = (merged(backbone, name) for name in names)
    prompt = backbone.tokenizer("Summarize the image in a few words.", add_special_tokens=False)["input_ids"]
    n = backbone.shape.visual_tokens
    for row in range(3):
        ids = inputs["input_ids"][row, inputs["attention_mask"][row].bool()]
        first = int((ids == backbone.image_token_id).nonzero()[0])
        with torch.no_grad():
            x = embedded(backbone, ids, inputs["pixel_values"][row : row + 1])
            words = backbone.decoder.embed_tokens(torch.tensor(prompt))
            whole = torch.cat([x[first : first + n], words, method.summary])  # [H_v; H_p; H_r]
            summary = decoder(first_pass, whole, torch.arange(len(whole)), causal=not bidirectional)[-3:]
            assert (e[row] - summary.mean(0)).abs().max() < 1e-4
            short = torch.cat([x[:first], summary, x[first + n :]])
            places = torch.tensor([*range(first), *(first + i for i in seen), *range(first + 3, len(short))])
            expected = backbone.model.lm_head(decoder(second_pass, short[places], places))
        after = len(ids) - first - n
        assert (got[row, -after - 1 :] - expected[-after - 1 :]).abs().max() < 2e-4


def test_info_nce_is_equation_3() -> None:
    torch.manual_seed(0)
    e_v, e_t = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    s = [[float(F.cosine_similarity(v, t, dim=0)) for t in e_t] for v in e_v]
    for temperature in (1.0, 0.07):
        total = 0.0
        for k in range(5):
            own = math.exp(s[k][k] / temperature)
            total -= math.log(own / sum(math.exp(s[k][j] / temperature) for j in range(5)))
            total -= math.log(own / sum(math.exp(s[j][k] / temperature) for j in range(5)))
        assert abs(float(info_nce(e_v, e_t, temperature)) - total / 5) < 1e-5


def test_texts_are_padded_on_either_side_without_a_difference() -> None:
    backbone = tiny_backbone()
    method = instance(backbone, lambda b, t: build("fwd2bot", t, b.shape, rank=4), 3)
    words = torch.tensor([[20, 21, 22]])
    left, right = torch.tensor([[0, 0, 20, 21, 22]]), torch.tensor([[20, 21, 22, 0, 0]])
    for other in (method, build("none", None, backbone.shape)):
        with torch.no_grad():
            plain = encode_texts(backbone, other, words, torch.ones_like(words))
            for ids in (left, right):
                assert (encode_texts(backbone, other, ids, (ids > 0).long()) - plain).abs().max() < 1e-4


def test_both_sides_of_the_contrastive_loss_reach_the_first_pass_only() -> None:
    backbone = tiny_backbone()
    method = instance(backbone, lambda b, t: build("fwd2bot", t, b.shape, rank=4), 3).train()
    pixels, ids = torch.randn(3, 3, 16, 16), torch.randint(10, 60, (3, 4))
    for side in ("image", "text"):
        backbone.model.zero_grad()
        e_v, e_t = encode_images(backbone, method, pixels), encode_texts(backbone, method, ids, torch.ones_like(ids))
        info_nce(e_v if side == "image" else e_v.detach(), e_t if side == "text" else e_t.detach()).backward()
        for name, p in backbone.decoder.named_parameters():
            if f".{COMPRESS}." in name:
                assert p.grad is not None and p.grad.abs().max() > 0, (side, name)
            elif f".{GENERATE}." in name:
                assert p.grad is None or not p.grad.any()


def test_losses_use_the_summaries_of_the_same_pass() -> None:
    backbone = tiny_backbone()
    method = instance(backbone, lambda b, t: build("fwd2bot", t, b.shape, rank=4), 3).train()
    inputs, ids = batch(backbone), torch.randint(10, 60, (3, 4))
    with compressing(backbone, method) as engine:
        backbone.model(**inputs)
    assert method.losses(engine.context) == {}
    found = method.losses(engine.context, Captions(ids, torch.ones_like(ids)))["contrastive"]
    e_v = encode_images(backbone, method, inputs["pixel_values"])
    e_t = encode_texts(backbone, method, ids, torch.ones_like(ids))
    assert abs(found.item() - info_nce(e_v, e_t, method.temperature).item()) < 1e-4


def test_parameters_are_counted_as_injected() -> None:
    backbone = tiny_backbone()
    method = build("fwd2bot", 4, backbone.shape, rank=4)
    method.attach(backbone)
    lora = sum(p.numel() for n, p in backbone.model.named_parameters() if ".lora_" in n)
    assert method.extra_parameters == lora + 4 * backbone.shape.width
    trainable = {n for n, p in backbone.decoder.named_parameters() if p.requires_grad}
    assert trainable == {n for n, _ in backbone.decoder.named_parameters() if ".lora_" in n}
    assert not backbone.model.lm_head.weight.requires_grad  # the LLM is frozen


def test_attaching_twice_changes_nothing_and_another_rank_is_refused() -> None:
    backbone = tiny_backbone()
    build("fwd2bot", 4, backbone.shape, rank=4).attach(backbone)
    before = len(adapters.tuner_layers(backbone.decoder))
    build("fwd2bot", 3, backbone.shape, rank=4).attach(backbone)
    assert len(adapters.tuner_layers(backbone.decoder)) == before == 7 * backbone.shape.depth
    with pytest.raises(UserError, match="already has adapters"):
        build("fwd2bot", 4, backbone.shape, rank=8).attach(backbone)


def test_embeddings_of_images_and_texts_come_from_every_method() -> None:
    from PIL import Image

    images = [Image.new("RGB", (30, 20), c) for c in ("red", "blue")]
    for name, tokens in (("none", None), ("fastv", 4), ("victor", 4), ("fwd2bot", 4)):
        backbone = tiny_backbone()
        method = build(name, tokens, backbone.shape)
        e_v, e_t = embed_images(backbone, method, images), embed_texts(backbone, method, ["a red circle", "blue"])
        assert e_v.shape == e_t.shape == (2, backbone.shape.width)
        assert e_v.dtype == e_t.dtype == torch.float32 and not e_v.requires_grad
        assert (e_v[0] - e_v[1]).abs().max() > 1e-3 and (e_t[0] - e_t[1]).abs().max() > 1e-3
        one = embed_texts(backbone, method, ["blue"])
        assert (one[0] - e_t[1]).abs().max() < 1e-4


@pytest.mark.parametrize("adapters_, names", [("stage", [COMPRESS, GENERATE]), ("single", [SHARED]), ("none", [])])
def test_the_adapters_that_there_are(adapters_: str, names: list[str]) -> None:
    """Table 6; full fine-tuning leaves the LLM's weights free to learn."""
    backbone = tiny_backbone()
    method = build("fwd2bot", 4, backbone.shape, rank=2, adapters=adapters_)
    method.attach(backbone)
    lora = {n: p for n, p in backbone.model.named_parameters() if ".lora_" in n}
    assert {n.split(".")[-2] for n in lora} == set(names)
    assert method.extra_parameters == method.summary.numel() + sum(p.numel() for p in lora.values())
    assert all(p.requires_grad for n, p in backbone.decoder.named_parameters() if n not in lora) == (not names)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"adapters": "two"}, "method.adapters=two.*stage"),
        ({"hide": [4]}, "0 to 3"),
        ({"hide": [0, 1, 2, 3]}, "not all"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build("fwd2bot", 4, tiny_backbone().shape, **options)
