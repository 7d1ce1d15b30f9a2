"""What a method states of itself: its options, its line, what it needs; and an object of it costs nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from projectors import shape_of
from torch.utils._python_dispatch import TorchDispatchMode

from vtc import declarations
from vtc.backbones.base import Backbone
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.interface import TokenPruner, Tower, TowerPruner, layer_option, option
from vtc.interface.options import declaration
from vtc.methods import build, make
from vtc.registry import imported, methods
from vtc.testing import batch, tiny_backbone
from vtc.testing.tiny_llava import tiny_llava_next, tiny_llava_onevision


@pytest.mark.parametrize("name", methods.names())
def test_source_and_class_say_the_same(name: str) -> None:
    """`--help` reads a method's file, a run its class."""
    path = methods.path(name)
    assert path is not None
    text = declarations.read(path)
    assert text == declaration(imported(path)) and list(text.options) == list(declaration(imported(path)).options)
    assert len(text.about) > 20 and all(declared.about for declared in text.options.values())


@pytest.mark.parametrize("name", ["perceiver", "qformer", "tokenpacker", "quecc", "mqt", "fwd2bot", "victor", "voco"])
def test_an_object_allocates_nothing(name: str) -> None:
    """At the size of LLaVA-1.5 7B: no parameter, no tensor, and it knows what each layer would see."""
    shape = replace(shape_of((24, 24), 1024, 24, -2, heads=16), width=4096, heads=32)
    with NoTensors():
        method = make(name, 64, shape)
    assert not list(method.parameters()) and len(method.layer_tokens()) == shape.depth


class NoTensors(TorchDispatchMode):
    """Inside, no operation of torch may run."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} makes a tensor")


def test_parameters_come_with_build() -> None:
    shape = tiny_backbone().shape
    assert not list(make("perceiver", 4, shape).parameters()) and list(build("perceiver", 4, shape).parameters())


class Several(TokenPruner):
    """Keeps some."""

    name = "several"
    layer: int = layer_option(2, "before this decoder layer", lowest=1)
    strength: float = option(0.5, "how much")
    count: int | None = option(None, "how many; null: all")
    hard: bool = option(False, "whether")
    needed: str = option(..., "a word")


def test_options_are_bound_inherited_and_refused() -> None:
    class Narrower(Several):
        layer = 0
        needed: str = option("now it has one", "a word")

    shape = replace(tiny_backbone().shape, depth=16)
    method = Several(4, shape, needed="x", strength=2)
    assert (method.layer, method.strength, method.count, method.needed) == (2, 2, None, "x")
    assert method.options == {"needed": "x", "strength": 2} and method.layer_tokens() == [16] * 2 + [4] * 14
    assert Several(4, shape, needed="x", layer=8).layer == 4
    assert Several(4, shape, needed="x", layer_scale="none", layer=8).layer == 8
    assert {*Narrower.declared_options()} == {"strength", "count", "hard", "needed"} and Narrower(4, shape).layer == 0
    for options, words in (
        ({}, "method.needed: several needs it"),
        ({"needed": 3}, "method.needed=3: allowed: a text"),
        ({"needed": "x", "strenght": 1}, "several has no such option; allowed: .*did you mean 'strength'"),
        ({"needed": "x", "strength": "much"}, "method.strength=much: allowed: a number"),
        ({"needed": "x", "count": 1.5}, "method.count=1.5: allowed: a whole number"),
        ({"needed": "x", "hard": 1}, "method.hard=1: allowed: true, false"),
        ({"needed": "x", "layer": 0}, "method.layer=0: this decoder has 16 layers; allowed: 1 to"),
        ({"needed": "x", "layer_scale": "no"}, "method.layer_scale=no: .*auto, none"),
    ):
        with pytest.raises(UserError, match=words):
            Several(4, shape, **options)


class KeyNorms(TowerPruner):
    """Keeps the patches with the smallest keys."""

    name = "key_norms"

    def rate(self, tower: Tower) -> torch.Tensor:
        return -tower.patch_keys(self.tower_layer).norm(dim=-1)


def siglip() -> Backbone:
    """LLaVA with a SigLIP tower, all of whose 16 tokens are patches."""
    return tiny_backbone(tower="siglip")


@pytest.mark.parametrize("tower", [tiny_backbone, siglip, tiny_llava_next])
def test_key_norms_ask_for_no_cls(tower) -> None:
    """They are read of CLIP and of SigLIP, and what is kept is what the keys themselves say."""
    backbone = tower()
    method, keys = KeyNorms(4, backbone.shape), []
    attention = backbone.tower_layers[method.tower_layer].self_attn
    hook = attention.k_proj.register_forward_hook(lambda module, args, output: keys.append(output))
    inputs = batch(backbone)
    with torch.no_grad(), compressing(backbone, method) as engine:
        backbone.model(**inputs)
    hook.remove()
    assert engine.report is not None and engine.report.tokens_out == [4] * 3
    if tower is tiny_llava_next:
        return  # an image's tokens are of several tiles there
    norms = keys[0][:, backbone.shape.vision.cls :].norm(dim=-1)
    first = backbone.visual(inputs["input_ids"]).long().argmax(1, keepdim=True)
    smallest = first + norms.argsort(1)[:, :4]
    assert engine.report.kept == smallest.sort(1).values.tolist()


def test_a_backbone_is_refused_by_the_need_that_it_lacks_alone() -> None:
    assert KeyNorms(4, siglip().shape) and KeyNorms(4, tiny_llava_onevision().shape)
    shape = tiny_backbone().shape
    merged = replace(shape, visual_tokens=4, grid=(2, 2))
    with pytest.raises(UserError, match="method=key_norms: it reads the attention behind each .* has 4 of 16 patches"):
        KeyNorms(4, merged)
    assert KeyNorms(4, replace(merged, vision=replace(merged.vision, merge=2)))
    with pytest.raises(UserError, match="has 9 of 4 squares of 2×2 patches"):
        KeyNorms(4, replace(shape, visual_tokens=9, vision=replace(shape.vision, merge=2)))
    with pytest.raises(UserError, match="method=key_norms: it reads the vision tower, and .* has 2 of them"):
        KeyNorms(4, replace(shape, vision=replace(shape.vision, towers=2)))
