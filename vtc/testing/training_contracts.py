"""The contracts about training: the loss, packed questions, gradients (see `vtc.testing.contracts`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vtc.backbones import adapters, recomputation
from vtc.backbones.base import Backbone
from vtc.engine import compressing
from vtc.engine.cache import CACHE
from vtc.testing.models import ALONG, batch, media, packed, packed_rows
from vtc.testing.runs import TOLERANCE, Make, cut, instance


def the_loss_is_right(backbone: Backbone, make: Make, tokens: int) -> str | None:
    """The loss of one pass is that of feeding the answer token by token, from the first token after the image on."""
    method = instance(backbone, make, tokens)
    inputs = batch(backbone, before=(2, 2), after=(6, 6), images=(1, 1))
    labels = inputs["input_ids"].clone()
    first = labels.shape[1] - 6
    labels[:, :first] = -100
    place = backbone.positions(inputs)
    with compressing(backbone, method), torch.no_grad():
        loss = backbone.model(**inputs, labels=labels, position_ids=place).loss
        now, cache, total = cut(inputs, 0, first, images=True) | {"position_ids": place[..., :first]}, None, []
        for at in range(first, labels.shape[1]):
            out = backbone.model(**now, **{CACHE: cache}, use_cache=True)
            total.append(F.cross_entropy(out.logits[:, -1], labels[:, at]))
            now = cut(inputs, at, at + 1) | {"position_ids": place[..., at : at + 1]}
            cache = out[CACHE]
    by_steps = torch.stack(total).mean().item()
    assert abs(loss.item() - by_steps) < TOLERANCE, f"loss {loss.item():.5f}, token by token {by_steps:.5f}"
    return None


def packed_questions_equal_single_ones(backbone: Backbone, make: Make, tokens: int) -> str | None:
    """Questions packed behind one image lose what each loses alone, the first token of each included."""
    method = instance(backbone, make, tokens)
    if method.probes() or method.reads_prompt:
        return "packed questions choose together"
    inputs, blocks = packed(backbone)
    total, count = 0.0, 0
    with compressing(backbone, method) as engine, torch.no_grad():
        with engine.blocks(blocks):
            loss = backbone.model(**inputs, use_cache=False).loss.item()
        for row, (packed_row, *_) in enumerate(packed_rows(backbone)):
            for q in range(1, 4):
                own = ((blocks[row] == 0) | (blocks[row] == q)) & inputs["attention_mask"][row].bool()
                alone = {n: inputs[n][row, own][None] for n in ALONG if n in inputs}
                labels, place = inputs["labels"][row, own], inputs["position_ids"][..., row : row + 1, own]
                out = backbone.model(**alone, **media(backbone, [packed_row.images]), position_ids=place).logits[0]
                total += F.cross_entropy(out[:-1], labels[1:], ignore_index=-100, reduction="sum").item()
                count += int((labels[1:] != -100).sum())
    assert abs(loss - total / count) < TOLERANCE, f"loss {loss:.5f}, one by one {total / count:.5f}"
    return None


def gradients_reach_everything(backbone: Backbone, make: Make, tokens: int) -> str | None:
    """Every trainable parameter of the method and of all its adapters gets a gradient, the same under checkpointing."""
    method = instance(backbone, make, tokens)
    inputs, blocks = packed(backbone)
    if not adapters.tuner_layers(backbone.decoder):
        backbone.model.requires_grad_(True)
    trainable = {f"method.{n}": p for n, p in method.named_parameters()}
    decoder = {n: p for n, p in backbone.decoder.named_parameters() if p.requires_grad and "embed_tokens" not in n}
    trainable |= decoder
    use = method.tower()
    if use is None or use.projects:
        trainable |= {f"projector.{n}": p for n, p in backbone.projector.named_parameters()}
    method.train()
    backbone.model.train()
    gradients = []
    try:
        for checkpointing in (False, True):
            if checkpointing:
                recomputation.start(backbone.model)
            for p in trainable.values():
                p.grad = None
            with compressing(backbone, method) as engine, engine.blocks(blocks):
                loss = backbone.model(**inputs, use_cache=False).loss
            loss.backward()  # outside: recomputation must not need the engine
            gradients.append({n: None if p.grad is None else p.grad.clone() for n, p in trainable.items()})
    finally:
        recomputation.stop(backbone.model)
        backbone.model.eval()
        backbone.model.zero_grad()
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradient.abs().max() > 0, f"no gradient for {name}"
        assert torch.isfinite(gradient).all(), f"gradient of {name} is not finite"
        again = gradients[1][name]
        assert again is not None, f"no gradient for {name} under checkpointing"
        worst = (gradient - again).abs().max().item()
        assert worst < 1e-5 * max(1.0, gradient.abs().max().item()), f"checkpointing changes {name} by {worst:.1e}"
    return None
