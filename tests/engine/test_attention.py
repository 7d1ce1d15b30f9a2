"""`Engine.watching_attention` against the weights that eager attention returns, on every family."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack

import pytest
import torch
from method_cases import BACKBONES

from vtc.engine import compressing
from vtc.engine.attention import made
from vtc.interface import REGISTER, TEXT, VISUAL
from vtc.registry import methods
from vtc.testing import batch, tiny_backbone
from vtc.testing.check import TINY, tiny
from vtc.testing.runs import instance

LAYERS = {1, 3}
METHODS = {
    "none": {},
    "fastv": {},
    "kmeans": {"layer": 1, "iterations": 2},
    "pact": {"layer": 1, "alpha": 4.0},  # attention is proportional to the sizes of its clusters
    "victor": {},
    "voco": {},
    "fwd2bot": {"rank": 2},
}


def last(tokens):
    """The last token of each row, and the visual ones before it."""
    chosen = tokens.visual.clone()
    chosen[:, -1] = True
    return chosen


def compared(backbone, method, inputs) -> list:
    """The rows of a pass, each of which is what the layer's own attention returned."""
    backbone.model.set_attn_implementation("eager")
    returned = defaultdict(list)

    def note(number):
        return lambda module, args, output: returned[number].append(output[1].mean(1))  # [B, L, S]

    with ExitStack() as stack:
        for number in backbone.shape.attending:  # the others have linear attention, which pays nothing to a token
            attention = backbone.decoder.layers[number].self_attn
            stack.callback(attention.register_forward_hook(note(number)).remove)
        engine = stack.enter_context(compressing(backbone, method))
        rows = stack.enter_context(engine.watching_attention({"made": made, "last": last}, LAYERS))
        with torch.no_grad():
            backbone.model(**inputs, position_ids=backbone.positions(inputs))
    assert {row.layer for row in rows} == LAYERS and {row.name for row in rows} >= {"last"}
    for row in rows:
        passes = returned[row.layer]
        eager = passes[0] if row.own else passes[-1]
        for b in range(len(eager)):
            columns = row.queries[b][row.real[b]]
            torch.testing.assert_close(row.weights[b, row.real[b]], eager[b, columns], atol=1e-5, rtol=1e-4)
    return rows


CASES = [(family, name) for family in TINY for name in ("none", "fastv", "victor", "fwd2bot")]
CASES += [(family, name) for family in ("llava", "qwen3_vl", "internvl") for name in ("kmeans", "pact", "voco")]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_rows_are_those_of_eager_attention(family: str, name: str) -> None:
    backbone = tiny(family)
    tokens = None if name == "none" else 4
    method = instance(backbone, lambda b, count: methods.get(name)(count, b.shape, **METHODS[name]).build(), tokens)
    rows = compared(backbone, method, batch(backbone))
    assert {row.own for row in rows if row.name == "made"} == {
        "victor": {False}, "voco": {False}, "fwd2bot": {True, False},
    }.get(name, set())  # fmt: skip


def test_what_the_image_gets_is_told_by_its_own_tokens() -> None:
    """FastV: all before its layer, behind it the kept ones; k-means: what a merged token gets, for each member."""
    backbone = tiny_backbone()
    inputs = batch(backbone, images=(1, 2, 1))
    for name, layer in (("fastv", 2), ("kmeans", 1)):
        options = {"layer_scale": "none"} | ({"iterations": 2, "layer": 1} if name == "kmeans" else {})
        method = methods.get(name)(5, backbone.shape, **options).build().eval()
        with torch.no_grad(), compressing(backbone, method) as engine:
            with engine.watching_attention({"last": last}) as rows:
                backbone.model(**inputs)
            report = engine.report
        assert [row for row, _ in rows[0].images] == [0, 1, 1, 2]
        per_image = [holders for images in report.holders for holders in images]
        for row in rows:
            for number, holders in enumerate(per_image):
                paid = row.to_image(number)[-1]
                if row.layer < layer:
                    assert paid.isfinite().all()
                    continue
                assert paid.isfinite().tolist() == [holder >= 0 for holder in holders], name
                for token, holder in enumerate(holders):
                    assert holder < 0 or paid[token] == paid[holder]
                b, columns = row.images[number]
                alive = columns[columns >= 0].unique()
                assert len(alive) == 5 and (row.role[b, alive] == VISUAL).all()
    total = sum(rows[0].to_role(role) for role in (TEXT, VISUAL, REGISTER))
    torch.testing.assert_close(total, torch.ones(3))


def test_the_first_pass_of_fwd2bot_is_told_apart() -> None:
    """Its own pass runs image by image; the summary tokens see the image's visual tokens, which are then gone."""
    backbone = tiny_backbone()
    method = instance(backbone, lambda b, count: methods.get("fwd2bot")(count, b.shape, rank=2).build(), 3)
    inputs = batch(backbone, images=(1, 2, 1))
    with torch.no_grad(), compressing(backbone, method) as engine, engine.watching_attention({"made": made}) as rows:
        backbone.model(**inputs)
    own, answering = [row for row in rows if row.own], [row for row in rows if not row.own]
    assert len(own) == len(answering) == backbone.shape.depth
    assert [row for row, _ in own[0].images] == [0, 1, 2, 3] and [row for row, _ in answering[0].images] == [0, 1, 1, 2]
    for row in own:
        assert row.real.sum(1).tolist() == [3, 3, 3, 3]
        assert all(row.to_image(n).isfinite().all() and row.to_image(n).shape == (3, 16) for n in range(4))
    assert all(row.to_image(n).isnan().all() for row in answering for n in range(4))


@pytest.mark.parametrize(
    ("backbone", "name"),
    [("gqa", "none"), ("gqa", "voco"), ("qwen2.5", "fastv"), ("idefics3_tiles", "none"), ("idefics3_tiles", "victor")],
)
def test_watching_changes_nothing(backbone: str, name: str) -> None:
    made_of = BACKBONES[backbone]()
    tokens = None if name == "none" else 4
    method = instance(made_of, lambda b, count: methods.get(name)(count, b.shape).build(), tokens)
    inputs = batch(made_of)
    outputs, reports = [], []
    for asked in (None, {"made": made, "last": last}):
        with torch.no_grad(), compressing(made_of, method) as engine, ExitStack() as stack:
            if asked:
                stack.enter_context(engine.watching_attention(asked))
            outputs.append(made_of.model(**inputs, position_ids=made_of.positions(inputs)).logits)
            reports.append(engine.report)
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    assert reports[0] == reports[1]
