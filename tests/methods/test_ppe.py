"""PPE: a merged token has the positions of several members, each in channels of its own."""

from __future__ import annotations

import pytest
import torch
from sequences import layout, sequence

from vtc.backbones.base import Backbone
from vtc.budget import Budget
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.interface.places import channels_of, member_positions
from vtc.methods import build, make
from vtc.testing import batch, tiny_backbone
from vtc.testing.models import collate, rows
from vtc.testing.tiny_qwen import tiny_qwen2_5_vl, tiny_qwen2_vl, tiny_qwen3_vl

FAMILIES = {"plain": tiny_backbone, "qwen2": tiny_qwen2_vl, "qwen2.5": tiny_qwen2_5_vl, "qwen3": tiny_qwen3_vl}


def axis_of(family: str, backbone: Backbone, count: int) -> list[int]:
    """The axis of each of `count` frequencies, as the families' papers have it."""
    if family == "plain":
        return [0] * count
    sections = backbone.decoder.config.rope_parameters["mrope_section"]
    if family != "qwen3":  # one axis behind the other
        return [axis for axis, size in enumerate(sections) for _ in range(size)]
    axes = [0] * count  # time, height, width in turn, as long as there are some
    for axis in (1, 2):
        for i in range(axis, 3 * sections[axis], 3):
            axes[i] = axis
    return axes


def table(family: str, backbone: Backbone, members: list[list[list[int]]], several: int):
    """(cos, sin) [1, L, d]: channel by channel, of each token's members' positions, [axes] each."""
    theta = backbone.decoder.rotary_emb.inv_freq.tolist()
    axes = axis_of(family, backbone, len(theta))
    angles = []
    for own in members:
        row = []
        for f, axis in enumerate(axes):
            alike = [g for g, other in enumerate(axes) if other == axis]
            run = alike.index(f) * min(several, len(alike)) // len(alike)
            which = run * len(own) // several if len(own) >= several else run % len(own)
            row.append(own[which][axis] * theta[f])
        angles.append(row + row)
    angle = torch.tensor(angles)[None]
    return angle.cos(), angle.sin()


def by_hand(family: str, backbone: Backbone, x, position, layer: int, groups: list[list[int]], several: int):
    """Last hidden states of one row [L, D] at positions [P, L], of which `groups` merge before a layer."""
    lm = backbone.decoder
    members = [[token] for token in range(len(x))]
    for i, block in enumerate(lm.layers):
        if i == layer:
            merged = {group[0]: group for group in groups}
            gone = {token for group in groups for token in group[1:]}
            members = [merged.get(token, [token]) for token in range(len(x)) if token not in gone]
            x = torch.stack([x[own].mean(0) for own in members])
        mask = torch.full((len(x), len(x)), torch.finfo(x.dtype).min).triu(1)[None, None]
        places = [[position[:, token].tolist() for token in own] for own in members]
        rope = table(family, backbone, places, several)
        x = block(x[None], attention_mask=mask, position_embeddings=rope)[0]
    return lm.norm(x)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("several", [1, 2, 3, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_decoder_whose_channels_turn_by_members(family: str, several: int, layer: int) -> None:
    backbone = FAMILIES[family]()
    with torch.no_grad():
        for merger in getattr(backbone.vision_tower, "deepstack_merger_list", ()):  # which the reference doesn't have
            merger.linear_fc2.weight.zero_()
            merger.linear_fc2.bias.zero_()
    inputs = batch(backbone, (3,), (5,), (1,))
    options = {"layer": layer, "layer_scale": "none"}
    own = {"avgpool": {"dims": 1, **options}, "ppe": {"positions": several, **options}}
    with torch.no_grad(), compressing(backbone, build("avgpool+ppe", 5, backbone.shape, **own)) as engine:
        got = backbone.model(**inputs, position_ids=backbone.positions(inputs)).logits[0, -5:]
        (holders,) = engine.report.holders[0]
    places = backbone.visual(inputs["input_ids"][0]).nonzero()[:, 0].tolist()
    groups: dict[int, list[int]] = {}
    for token, holder in enumerate(holders):
        groups.setdefault(holder, []).append(places[token])
    assert len(groups) == 5 and sorted(map(len, groups.values()))[-1] > 2
    position = backbone.positions(inputs)
    position = (position if position.ndim == 3 else position[None])[-backbone.position_axes :, 0]
    with torch.no_grad():
        x = row_of(backbone, inputs)
        expected = by_hand(family, backbone, x, position, layer, list(groups.values()), several)
        want = backbone.model.lm_head(expected[-5:])
    assert (got - want).abs().max() < 3e-4


def row_of(backbone: Backbone, inputs: dict) -> torch.Tensor:
    """[T, D]: the embeddings of the one row, its image in place."""
    x = backbone.decoder.embed_tokens(inputs["input_ids"][0]).clone()
    visual = backbone.visual(inputs["input_ids"][0])
    x[visual] = torch.cat(list(backbone.image_features(dict(inputs)) or [])).to(x.dtype)
    return x


@pytest.mark.parametrize("family", ["plain", "qwen2"])
def test_where_nothing_merged_nothing_changes(family: str) -> None:
    """Bit for bit: each token has its own position in every channel."""
    backbone = FAMILIES[family]()
    inputs = collate(backbone, rows(backbone, images=(1, 2, 0)))
    position = backbone.positions(inputs)
    with torch.no_grad():
        plain = backbone.model(**inputs, position_ids=position).logits
        for layer in (0, 2):
            with compressing(backbone, build("ppe", None, backbone.shape, layer=layer, layer_scale="none")):
                got = backbone.model(**inputs, position_ids=position).logits
            real = inputs["attention_mask"].bool() & ~backbone.visual(inputs["input_ids"])
            assert torch.equal(got[real], plain[real]), layer


def test_members_are_taken_evenly_and_in_turn() -> None:
    tokens = sequence([layout(7, 2, before=1, after=1)], compact=True)
    groups = torch.tensor([[-1, 0, 0, 1, 0, 0, 0, -1, 2, 2, -1]])
    merged = tokens.merge(groups)
    assert merged.position[0].tolist() == [[0, 1, 2, 3, 4, 5]]  # closed, as before the LLM
    own = merged.restored(3)
    assert own.position[0].tolist() == [[0, 1, 3, 7, 8, 10]] and own.shift is None and not own.compact
    places = member_positions(own)[:, 0, 0].T.tolist()
    assert places == [[0] * 3, [1, 2, 5], [3] * 3, [7] * 3, [8, 9, 8], [10] * 3]


def test_what_was_dropped_and_made_has_a_place() -> None:
    tokens = sequence([layout(4, before=1, after=2), layout(2, before=2, after=1)], compact=True)
    kept = tokens.keep_visual(torch.tensor([[False, True, False, True], [True, False, False, False]]))
    new = kept.insert(torch.ones(2, 8)).restored(4)
    real = [p[m].tolist() for p, m in zip(new.position[0], new.mask, strict=True)]
    assert real == [[0, 2, 4, 4, 4, 5, 6], [0, 1, 2, 2, 2, 4]]
    places = member_positions(new)
    assert all(torch.equal(places[k][:, new.mask], new.position[:, new.mask]) for k in range(4))


def test_a_later_merge_has_its_members_positions() -> None:
    tokens = sequence([layout(6, before=1, after=1)])
    first = tokens.merge(torch.tensor([[-1, 0, 0, 1, 1, 2, 2, -1]])).restored(6)
    second = first.merge(torch.tensor([[-1, 0, -1, 0, -1]]))
    places = member_positions(second)[:, 0, 0].T.tolist()
    assert places == [[0] * 6, [1, 2, 5, 6, 1, 2], [3, 4] * 3, [7] * 6]


def test_channels_are_cut_by_axis() -> None:
    assert channels_of(torch.zeros(16, dtype=torch.long), 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3] * 2
    assert channels_of(torch.zeros(6, dtype=torch.long), 8).tolist() == [0, 1, 2] * 2
    axes = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2] * 2)
    assert channels_of(axes, 2).tolist() == [0, 1, 0, 0, 1, 0, 0, 1] * 2
    mixed = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0] * 2)
    assert channels_of(mixed, 2).tolist() == [0, 0, 0, 0, 1, 1, 1, 1] * 2


def test_the_end_is_the_budget_of_the_method_before() -> None:
    shape = tiny_backbone().shape

    def parts(name: str, tokens: int | None, **options) -> list[int | None]:
        return [part.tokens for part in make(name, tokens, shape, **options)]

    assert parts("kmeans+ppe", 5) == [5, 5] and parts("kmeans+ppe", None) == [2, 2]
    assert parts("kmeans+ppe", None, kmeans={"tokens": 7}) == [7, 7]
    assert parts("divprune+kmeans+ppe", 4) == [8, 4, 4]
    late = {"layer": 3, "layer_scale": "none"}
    assert parts("kmeans+ppe+fastv", 3, kmeans={"tokens": 6}, fastv=late) == [6, 6, 3]
    with pytest.raises(UserError, match="tokens=5: avgpool.ppe on model offers 1, 2, 4, 8, 16"):
        parts("avgpool+ppe", 5)
    with pytest.raises(UserError, match="tokens=5: kmeans.ppe on model offers 7"):
        parts("kmeans+ppe", 5, kmeans={"tokens": 7})


@pytest.mark.parametrize("build_backbone", [tiny_backbone, tiny_qwen2_vl])
def test_by_itself_it_has_no_budget(build_backbone) -> None:
    shape = build_backbone().shape
    for budget in (Budget(tokens=5), Budget(ratio=0.5), Budget(flops=0.5), Budget(compression=2.0)):
        with pytest.raises(UserError, match="ppe leaves every token; put it behind a method that merges"):
            make("ppe", budget.resolve, shape)
    if shape.visual_tokens:
        for budget in (Budget(), Budget(tokens=shape.visual_tokens), Budget(ratio=1.0)):
            assert make("ppe", budget.resolve, shape).tokens == shape.visual_tokens
    given = {part: {"layer": 0, "layer_scale": "none"} for part in ("kmeans", "ppe")}
    assert [part.tokens for part in make("kmeans+ppe", Budget(tokens=5).resolve, shape, **given)] == [5, 5]


def test_it_is_put_at_the_layer_of_the_method_before() -> None:
    shape = tiny_backbone(depth=8).shape
    with pytest.raises(UserError, match="ppe acts before layer 2 .*, kmeans before it in the order only at layer 4"):
        make("kmeans+ppe", 5, shape, kmeans={"layer": 4, "layer_scale": "none"}, ppe={"layer_scale": "none"})
    assert (
        "several positions at once" in make("kmeans+ppe", 5, shape, kmeans={"layer": 0}, ppe={"layer": 0}).unstorable()
    )
