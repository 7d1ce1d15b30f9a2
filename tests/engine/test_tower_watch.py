"""What is seen of the vision tower, against an eager float64 pass that returns attention weights and hidden states.

(Its softmax is float32 all the same: hence 1e-6.)
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vtc.backbones import recomputation
from vtc.engine import compressing, encode_images
from vtc.errors import UserError
from vtc.interface import Compressor, TowerResampler, TowerUse, projected_layer, resolve_tower_layer
from vtc.methods import build
from vtc.testing import batch, tiny_backbone
from vtc.testing.runs import generation


class Looks(Compressor):
    """Keeps every token and remembers what it saw."""

    name = "looks"
    seen = None

    def layers(self):
        return {0}

    def tower(self):
        return TowerUse(watch=frozenset({0, 1}))

    def reduce(self, tokens, layer, context):
        self.seen = context.seen()
        return tokens


def eager(backbone, pixels):
    """The tower's own hidden states and attention weights."""
    backbone.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return backbone.vision_tower(pixels, output_hidden_states=True, output_attentions=True)
    finally:
        backbone.model.set_attn_implementation("sdpa")


def double(**options):
    backbone = tiny_backbone(**options)
    backbone.model.double()
    return backbone


def inputs_of(backbone, images=(1, 2, 0)):
    inputs = batch(backbone, images=images)
    return inputs | {"pixel_values": inputs["pixel_values"].double()}


@pytest.mark.parametrize("level", [-1, -2, 2, 1])
def test_equals_what_eager_attention_returns(level: int) -> None:
    backbone = double()
    backbone.model.config.vision_feature_layer = backbone.core.config.vision_feature_layer = level
    backbone.shape = type(backbone).shape_from(backbone.model.config, "tiny")
    method, inputs = Looks(None, backbone.shape), inputs_of(backbone)
    with compressing(backbone, method), torch.no_grad():
        backbone.model(**inputs)
    want, seen = eager(backbone, inputs["pixel_values"]), method.seen
    for layer in (0, 1):
        assert (seen.patch_attention(layer) - want.attentions[layer][:, :, 0, 1:]).abs().max() < 1e-6
        inner = backbone.tower_layers[layer]
        keys = inner.self_attn.k_proj(inner.layer_norm1(want.hidden_states[layer]))
        assert (seen.patch_keys(layer) - keys[:, 1:]).abs().max() < 1e-6
        q = inner.self_attn.q_proj(inner.layer_norm1(want.hidden_states[layer]))
        whole = (q @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5).softmax(-1)[:, 0, 1:]  # one head of the full width
        assert (seen.patch_attention(layer, heads=1)[:, 0] - whole).abs().max() < 1e-6
    assert (seen.features - want.hidden_states[level][:, 1:]).abs().max() < 1e-6
    assert torch.equal(want.hidden_states[level], want.hidden_states[projected_layer(backbone.shape) + 1])


@pytest.mark.parametrize("beams", [1, 3])
def test_generate_computes_features_once_and_every_beam_finds_its_images(beams: int) -> None:
    backbone = double()
    method, inputs, calls = Looks(None, backbone.shape), inputs_of(backbone, (1, 2, 1)), []
    hook = backbone.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    with compressing(backbone, method):
        generation(backbone, inputs, count=2, num_beams=beams, use_cache=True)
    hook.remove()
    assert len(calls) == 1
    want = eager(backbone, inputs["pixel_values"]).attentions[0][:, :, 0, 1:]
    order = [i for row in ([0], [1, 2], [3]) for _ in range(beams) for i in row]
    assert (method.seen.patch_attention(0) - want[order]).abs().max() < 1e-6


def test_a_text_row_and_a_text_batch_see_nothing() -> None:
    backbone = double()
    method, inputs = Looks(None, backbone.shape), inputs_of(backbone)
    with compressing(backbone, method):
        backbone.model(input_ids=inputs["input_ids"][2:], attention_mask=inputs["attention_mask"][2:])
        assert method.seen is None
        backbone.model(**inputs)
        assert len(method.seen.features) == 3


def test_embedding_an_image_sees_it_too() -> None:
    backbone = double()
    method, pixels = Looks(None, backbone.shape), inputs_of(backbone)["pixel_values"]
    encode_images(backbone, method, pixels)
    want = eager(backbone, pixels).attentions[1][:, :, 0, 1:]
    assert (method.seen.patch_attention(1) - want).abs().max() < 1e-6


@pytest.mark.parametrize("checkpointing", [False, True])
def test_features_carry_gradients_and_scores_none(checkpointing: bool) -> None:
    backbone = tiny_backbone()
    backbone.model.train()
    if checkpointing:
        recomputation.start(backbone.model)
    method = Looks(None, backbone.shape)
    with compressing(backbone, method):
        loss = backbone.model(**batch(backbone), use_cache=False).logits.sum()
    assert method.seen.features.requires_grad and not method.seen.patch_attention(0).requires_grad
    (method.seen.features.sum() + loss).backward()
    assert backbone.tower_layers[0].mlp.fc1.weight.grad.abs().max() > 0


def test_features_from_elsewhere_are_refused() -> None:
    backbone = tiny_backbone()
    inputs = batch(backbone)
    outputs = backbone.core.get_image_features(inputs.pop("pixel_values"), return_dict=True)
    with (
        pytest.raises(UserError, match="method=fastervlm: .*pixel_values"),
        compressing(backbone, build("fastervlm", 4, backbone.shape)),
    ):
        backbone.model(**inputs, mm_encoder_outputs={"image": outputs})


def test_nothing_stays_behind_whatever_happens() -> None:
    backbone = tiny_backbone()
    inputs = batch(backbone)
    eager(backbone, inputs["pixel_values"])  # transformers' own hooks, which it never takes away

    def hooks():
        return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in backbone.vision_tower.modules()]

    before, broken = hooks(), backbone.tower_layers[1].mlp
    for failing in (False, True):
        if failing:
            broken.forward = lambda *_: 1 / 0
        try:
            with compressing(backbone, build("fastervlm", 4, backbone.shape)):
                backbone.model(**inputs)
        except ZeroDivisionError:
            assert failing
        assert hooks() == before
        assert "get_image_features" not in backbone.core.__dict__
        assert not backbone.projector._forward_pre_hooks
        assert all("forward" not in layer.__dict__ for layer in backbone.tower_layers)
    del broken.forward


def test_engines_nest_in_the_tower_too() -> None:
    backbone = tiny_backbone()
    inputs = batch(backbone)
    outer, inner = build("fastervlm", 4, backbone.shape), build("fastervlm", 7, backbone.shape)
    with compressing(backbone, outer) as first:
        with compressing(backbone, inner) as second:
            backbone.model(**inputs)
            assert second.report.tokens_out == [7, 7, 7]
        backbone.model(**inputs)
        assert first.report.tokens_out == [4, 4, 4]


def test_an_engine_inside_another_has_the_tower_for_itself() -> None:
    backbone = tiny_backbone()
    inputs, inner = batch(backbone), build("fastervlm", 7, backbone.shape)
    with torch.no_grad(), compressing(backbone, inner):
        alone = backbone.model(**inputs).logits
    with torch.no_grad(), compressing(backbone, build("downsample", 4, backbone.shape)), compressing(backbone, inner):
        assert torch.equal(backbone.model(**inputs).logits, alone)


def test_a_method_that_asks_nothing_leaves_the_tower_alone() -> None:
    backbone = tiny_backbone()
    with compressing(backbone, build("fastv", 4, backbone.shape)):
        assert "get_image_features" not in backbone.core.__dict__


def test_what_no_patch_is_behind_is_refused_by_name() -> None:
    shape = tiny_backbone().shape
    with pytest.raises(UserError, match="method=fastervlm: it reads the attention behind each .* has 17 of 16 patches"):
        build("fastervlm", 4, replace(shape, visual_tokens=17))


def test_layers_are_counted_as_the_papers_count() -> None:
    shape = tiny_backbone().shape
    shape = replace(shape, vision=replace(shape.vision, depth=24, feature_layer=-2))
    assert resolve_tower_layer(None, shape) == resolve_tower_layer(-2, shape) == 22
    assert resolve_tower_layer(-1, shape) == resolve_tower_layer(23, shape) == 23
    for wrong in (24, -25, 1.5, True):
        with pytest.raises(UserError, match=r"method.tower_layer=.*allowed: -24 to 23"):
            resolve_tower_layer(wrong, shape)


class InItsPlace(TowerResampler):
    """The projector itself, as a method: what `projects=False` leaves out must be all that it leaves out."""

    name = "in_its_place"

    def __init__(self, backbone, levels=()):
        super().__init__(backbone.shape.visual_tokens, backbone.shape)
        self.levels, self.seen = frozenset(levels), None
        self.project = backbone.projector.forward  # of the class: not what the engine puts into the instance

    def tower(self):
        return TowerUse(projects=False, levels=self.levels)

    def forward(self, features, context):
        self.seen = context.seen()
        return self.project(features)


def test_levels_are_the_hidden_states_behind_each_layer() -> None:
    backbone = double()
    method, inputs = InItsPlace(backbone, {0, 1}), inputs_of(backbone)
    with compressing(backbone, method), torch.no_grad():
        backbone.model(**inputs)
    want = eager(backbone, inputs["pixel_values"]).hidden_states
    for layer in (0, 1):
        assert (method.seen.levels[layer] - want[layer + 1]).abs().max() < 1e-6
        assert (method.seen.patch_level(layer) - want[layer + 1][:, 1:]).abs().max() < 1e-6
    some = method.seen.images(torch.tensor([2, 0, 2]))
    assert torch.equal(some.levels[1], method.seen.levels[1][[2, 0, 2]]) and some.extra == 1


@pytest.mark.parametrize("checkpointing", [False, True])
def test_levels_carry_gradients(checkpointing: bool) -> None:
    backbone = tiny_backbone()
    backbone.model.train()
    if checkpointing:
        recomputation.start(backbone.model)
    method, inputs, found = InItsPlace(backbone, {0}), batch(backbone), []
    with compressing(backbone, method):
        backbone.model(**inputs, use_cache=False)
    method.seen.levels[0].square().sum().backward()
    found = backbone.tower_layers[0].mlp.fc1.weight.grad.clone()
    backbone.model.zero_grad()
    states = backbone.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
    states[1].square().sum().backward()
    assert (found - backbone.tower_layers[0].mlp.fc1.weight.grad).abs().max() < 1e-4 * found.abs().max()


@pytest.mark.parametrize("beams", [1, 3])
def test_a_method_in_the_projectors_place_gives_what_the_projector_would(beams: int) -> None:
    backbone = double()
    method, inputs, calls = InItsPlace(backbone), inputs_of(backbone, (1, 2, 1)), []
    hook = backbone.projector.linear_2.register_forward_hook(lambda module, args, output: calls.append(args[0].shape))
    plain = generation(backbone, inputs, num_beams=beams)
    ran = len(calls)
    with compressing(backbone, method):
        got = generation(backbone, inputs, num_beams=beams)
    hook.remove()
    assert ran == 1 and [c[0] for c in calls[ran:]] == [4 * beams]  # ours alone: the model's own call never came
    assert torch.equal(got.sequences, plain.sequences)
    assert all((a - b).abs().max() < 1e-6 for a, b in zip(got.logits, plain.logits, strict=True))


def test_without_projection_the_places_hold_zeros_and_everything_is_given_back() -> None:
    backbone, seen = tiny_backbone(), []

    class Peeks(InItsPlace):
        def reduce(self, tokens, layer, context):
            seen.append(tokens.visual_hidden())
            assert torch.equal(torch.stack(list(context.features)), seen[-1])
            return super().reduce(tokens, layer, context)

    inputs = batch(backbone, images=(1, 2, 0))
    with torch.no_grad():
        plain = backbone.model(**inputs).logits
        own = lambda features: features.new_ones(*features.shape[:-1], backbone.shape.width)  # noqa: E731
        for given in (None, own):  # accelerate puts a forward of its own on the instance
            if given is not None:
                backbone.projector.forward = given
            with compressing(backbone, Peeks(backbone)):
                backbone.model(**inputs)
            assert seen[-1].shape == (3, 16, 32) and not seen[-1].any()
            assert backbone.projector.__dict__.get("forward") is given
        del backbone.projector.forward
        assert torch.equal(backbone.model(**inputs).logits, plain)


def test_embedding_an_image_does_without_the_projector_too() -> None:
    backbone = double()
    pixels = inputs_of(backbone)["pixel_values"]
    with torch.no_grad():
        want = encode_images(backbone, build("none", None, backbone.shape), pixels)
        got = encode_images(backbone, InItsPlace(backbone), pixels)
    assert (got - want).abs().max() < 1e-6
