"""FastV against a mask over an eager pass that returns its attention weights."""

from __future__ import annotations

import pytest
import torch
from reference import attention_weights, decoder, embedded

from vtc.engine import compressing
from vtc.methods import build
from vtc.testing import batch, tiny_backbone
from vtc.testing.models import packed


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_equals_a_mask_over_what_the_last_token_attends_to_least(kv_heads: int, layer: int) -> None:
    backbone = tiny_backbone(kv_heads=kv_heads)
    method = build("fastv", 5, backbone.shape, layer=layer, layer_scale="none")
    inputs = batch(backbone)
    with torch.no_grad(), compressing(backbone, method) as engine:
        got = backbone.model(**inputs, position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)).logits
        kept = engine.report.kept
    for row in range(3):
        real = inputs["attention_mask"][row].bool()
        ids = inputs["input_ids"][row, real]
        with torch.no_grad():
            x = embedded(backbone, ids, inputs["pixel_values"][row : row + 1])
            weights = attention_weights(backbone, x, layer - 1)
            visual = (ids == backbone.image_token_id).nonzero()[:, 0]
            score = weights[:, -1].mean(0)[visual]  # last row, mean over heads
            best = visual[score.topk(5).indices]
            offset = int((~real).sum())
            assert kept[row] == sorted((best + offset).tolist())
            hide = torch.zeros(len(ids), dtype=torch.bool)
            hide[visual] = True
            hide[best] = False
            expected = backbone.model.lm_head(decoder(backbone, x, torch.arange(len(ids)), hidden_from={layer: hide}))
        text = ids != backbone.image_token_id
        assert (got[row, real][text] - expected[text]).abs().max() < 1e-4


def test_the_answer_has_no_say_in_the_choice() -> None:
    """With labels, the last PROMPT token chooses, not the end of the answer."""
    backbone = tiny_backbone()
    method = build("fastv", 5, backbone.shape)
    inputs = batch(backbone, before=(2, 2), after=(8, 8), images=(1, 1))
    prompt = {k: v if k == "pixel_values" else v[:, :-4] for k, v in inputs.items()}
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100
    with torch.no_grad(), compressing(backbone, method) as engine:
        backbone.model(**prompt)
        chosen = engine.report.kept
        backbone.model(**inputs, labels=labels)
        assert engine.report.kept == chosen
        backbone.model(**inputs)
        assert engine.report.kept != chosen  # else this test shows nothing


def test_default_is_half() -> None:
    backbone = tiny_backbone()
    assert build("fastv", None, backbone.shape).tokens == 8


def test_layer_0_has_no_attention_before_it() -> None:
    from vtc.errors import UserError

    with pytest.raises(UserError, match="method.layer=0"):
        build("fastv", 5, tiny_backbone().shape, layer=0)


@pytest.mark.parametrize("labels", ["model", "blocks", "none", "first"])
@pytest.mark.parametrize("layer", [1, 2])
def test_packed_questions_choose_together(labels: str, layer: int) -> None:
    """Each question by itself, in float64: the mean over the questions of what the ends of their prompts attend to
    chooses, and the logits of each are those of a pass that hides the rest."""
    backbone = tiny_backbone()
    backbone.model.double()
    method = build("fastv", 5, backbone.shape, layer=layer, layer_scale="none")
    inputs, blocks = packed(backbone)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    answers = inputs.pop("labels")  # of every token of a question, the first among them
    gone = blocks[1] == 3  # one row has two questions, the other three
    inputs["attention_mask"][1, gone], blocks[1, gone], answers[1, gone] = 0, 0, -100
    questions = {0: (1, 2, 3), 1: (1, 2)}
    if labels != "first":
        for row, block in enumerate(blocks):
            for q in questions[row]:
                where = (block == q).nonzero()[:, 0]
                answers[row, where[:2] if (row, q) != (1, 2) else where] = -100  # one block has no answer
    given = {"labels": answers} if labels in ("model", "first") else {}
    with torch.no_grad(), compressing(backbone, method) as engine:
        with engine.blocks(blocks, *([answers] if labels == "blocks" else [])):
            got = backbone.model(**inputs, use_cache=False, **given).logits
        kept = engine.report.kept
    for row in range(2):
        real = inputs["attention_mask"][row].bool()
        prefix = real & (blocks[row] == 0)
        visual = (inputs["input_ids"][row] == backbone.image_token_id).nonzero()[:, 0]
        alone, scores = {}, []
        for q in questions[row]:
            own = (prefix | (blocks[row] == q) & real).nonzero()[:, 0]
            ids = inputs["input_ids"][row, own]
            counted = (answers[row, own] != -100).nonzero()[:, 0]
            end = int(counted[0]) - 1 if labels != "none" and len(counted) else len(own) - 1
            with torch.no_grad():
                x = embedded(backbone, ids, inputs["pixel_values"][row : row + 1])
                scores.append(attention_weights(backbone, x, layer - 1)[:, end, visual].mean(0))
            alone[q] = own, x
        best = visual[torch.stack(scores).mean(0).topk(5).indices]
        assert kept[row] == sorted(best.tolist())
        for q, (own, x) in alone.items():
            hide = torch.isin(own, visual) & ~torch.isin(own, best)
            with torch.no_grad():
                out = decoder(backbone, x, torch.arange(len(own)), hidden_from={layer: hide})
                expected = backbone.model.lm_head(out)
            mine = (blocks[row, own] == q).nonzero()[:-1, 0]  # the last slot predicts the next question's first token
            assert (got[row, own][mine] - expected[mine]).abs().max() < 1e-6, q


def test_one_packed_question_is_a_row_of_its_own() -> None:
    backbone = tiny_backbone()
    method = build("fastv", 5, backbone.shape)
    inputs, blocks = packed(backbone, questions=1)
    inputs["labels"][:, : int((blocks[0] == 1).nonzero()[2])] = -100
    with torch.no_grad(), compressing(backbone, method) as engine:
        plain = backbone.model(**inputs, use_cache=False)
        kept = engine.report.kept
        with engine.blocks(blocks):
            together = backbone.model(**inputs, use_cache=False)
        assert engine.report.kept == kept
    assert abs(together.loss - plain.loss) < 1e-5
    own = inputs["attention_mask"].bool() & (blocks == 1)
    assert (together.logits[own] - plain.logits[own]).abs().max() < 1e-4
